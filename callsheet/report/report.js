"use strict";
// The report as a review desk: one shot has the focus, keys and buttons decide about it, and what was
// decided is kept in this browser until it is downloaded for the next run.
// Everything from the script is set as text, never as markup.

const data = window.CALLSHEET;
const byId = id => document.getElementById(id);

// ---- Nodes and figures

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "className") node.className = value;
    else if (key === "onclick") node.addEventListener("click", value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}
const seconds = value => value >= 60 ? `${Math.floor(value / 60)} min ${Math.round(value % 60)} s` : `${value.toFixed(1)} s`;
const money = value => "$" + value.toFixed(value && value < 0.01 ? 4 : 2);
const joined = parts => parts.filter(Boolean).join(" · ");
const say = text => { byId("said").textContent = text; };

// ---- What is known of a shot

const unfolded = new WeakMap();
/** A shot's takes, cues and captions: a text in the data until they are wanted, so that a page of 10,000 shots opens at once. */
function detailsOf(shot) {
  if (!unfolded.has(shot)) unfolded.set(shot, shot.details ? JSON.parse(shot.details) : shot);  // as it is in data of old
  return unfolded.get(shot);
}
const takesOf = shot => detailsOf(shot).takes;
/** Checks by name and limit, which stand in the data once. */
function checksOf(rows) {
  return rows.map(row => {
    const [kind, value, ok] = Array.isArray(row) ? row : [null, row.value, row.ok];  // data of old names each
    const [name, limit] = kind === null ? [row.name, row.limit] : data.check_kinds[kind];
    return {name: name.replace(/_/g, " "), limit, value: value ?? "–", ok};
  });
}

// ---- What was decided

// A report that is written anew shows other takes: its decisions are others too.
const storageKey = data && `callsheet:decisions:${data.batch}:${data.finished}`;
// By shot_id: {decision, attempts: {step: n}, not_again: [step], note}, in the order of deciding.
let kept = new Map();
const earlier = new Map();  // what each shot's decisions were before, for undo

function readKept() {
  try { kept = new Map(JSON.parse(localStorage.getItem(storageKey) || "[]")); }
  catch { byId("unkept").hidden = false; }
}
function keep() {
  try { localStorage.setItem(storageKey, JSON.stringify([...kept])); }
  catch { byId("unkept").hidden = false; }
}
const isEngineStep = take => take.step !== "clip";
const chosenOf = take => take.attempts.find(attempt => attempt.chosen);
const engineSteps = shot => takesOf(shot).filter(isEngineStep);
const decisionOf = shot => kept.get(shot.shot_id)?.decision || "";
const notAgain = shot => kept.get(shot.shot_id)?.not_again || [];
// Only what was made can be made again: what was not, the next run makes in any case.
const madeAgain = shot => engineSteps(shot).filter(take => chosenOf(take) && !notAgain(shot).includes(take.step));

/** Why a decision cannot be; empty where it can. */
function refusal(shot, decision) {
  if (decision === "accept" && !engineSteps(shot).every(chosenOf)) return "not all of it is made";
  if (decision === "retake" && !engineSteps(shot).some(chosenOf)) return "nothing of it is made; the next run makes it";
  if (decision === "retake" && !madeAgain(shot).length) return "no step is ticked to be made again";
  return "";
}
function decide(shot, decision) {
  const why = refusal(shot, decision);
  if (why) return say(`${shot.shot_id}: ${why}`);
  const before = kept.get(shot.shot_id);
  const attempts = Object.fromEntries(engineSteps(shot).map(take => [take.step, selectedOf(shot, take)?.n]));
  if (!earlier.has(shot.shot_id)) earlier.set(shot.shot_id, []);
  // What is decided a second time is undone at once.
  if (JSON.stringify([before?.decision, before?.attempts]) !== JSON.stringify([decision, attempts])) earlier.get(shot.shot_id).push({decision: before?.decision || "", attempts: before?.attempts});
  kept.delete(shot.shot_id);  // the latest comes last
  kept.set(shot.shot_id, {...before, decision, attempts});
  keep();
  paint(shot);
  paintCounts();
  say(`${shot.shot_id}: ${saidOf(shot)}`);
}
function undo(shot) {
  if (!decisionOf(shot)) return say(`${shot.shot_id}: nothing to undo`);
  kept.set(shot.shot_id, {...kept.get(shot.shot_id), decision: "", attempts: undefined, ...earlier.get(shot.shot_id)?.pop()});
  keep();
  paint(shot);
  paintCounts();
  say(`${shot.shot_id}: ${saidOf(shot) || "undecided"}`);
}
function saidOf(shot) {
  const decision = decisionOf(shot);
  if (decision === "retake") return `retake ${madeAgain(shot).map(take => take.step).join(", ")}`;
  if (decision !== "accept") return decision && "rejected";
  const others = engineSteps(shot).map(take => [take, kept.get(shot.shot_id).attempts[take.step]]).filter(([take, n]) => chosenOf(take)?.n !== n);
  return ["accepted", ...others.map(([take, n]) => `${take.step} ${n}`)].join(", ");
}

const COLUMNS = ["shot_id", "step", "take", "attempt", "decision", "note"];

function rowsOf(shot) {
  const {decision, attempts, note = ""} = kept.get(shot.shot_id);
  const row = (take, n) => [shot.shot_id, take.step, take.key, n, decision, note];
  const clip = takesOf(shot).find(take => !isEngineStep(take));
  // A clip that was not made has no attempt yet; its first is 0.
  if (decision === "reject") return [row(clip, chosenOf(clip)?.n ?? 0)];
  if (decision === "retake") return madeAgain(shot).map(take => row(take, chosenOf(take).n));
  // A shot without engines, as of a picture of one's own, has its clip only.
  if (!engineSteps(shot).length) return [row(clip, chosenOf(clip)?.n ?? 0)];
  return engineSteps(shot).map(take => row(take, attempts[take.step]));
}
/** All rows, in the order of the script. Shots may share a take: what was decided last about it holds. */
function allRows() {
  const places = new Map(data.shots.map((shot, place) => [shot.shot_id, place]));
  const byTake = new Map();
  for (const [shotId, entry] of kept) {
    if (!entry.decision || !places.has(shotId)) continue;
    for (const row of rowsOf(data.shots[places.get(shotId)])) byTake.set(row[2], row);
  }
  return [...byTake.values()].sort((a, b) => places.get(a[0]) - places.get(b[0]));
}
function csv(rows) {
  const quoted = value => `"${String(value).replace(/"/g, '""')}"`;
  // The mark at the beginning tells spreadsheets that it is UTF-8.
  return "\ufeff" + [COLUMNS, ...rows].map(row => row.map(quoted).join(",") + "\r\n").join("");
}
// Prefect takes parameters of half a megabyte in all.
const LARGEST_FIELD = 400000;
async function copy() {
  const rows = allRows();
  if (csv(rows).length > LARGEST_FIELD) {
    say("these are too many for a form: download the decisions, and give their path");
    return;
  }
  try {
    await navigator.clipboard.writeText(csv(rows));
    say(`${rows.length} rows copied: paste them into the field “decisions” of a run`);
  } catch (reason) {
    say("this browser does not let the page copy: download the decisions");
  }
}
function download() {
  const address = URL.createObjectURL(new Blob([csv(allRows())], {type: "text/csv;charset=utf-8"}));
  const link = el("a", {href: address, download: `${data.batch}-decisions.csv`});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

// ---- Players, waveforms, tables

// A page that was opened from a folder may read no files: then there are no waveforms.
const mayFetch = location.protocol.startsWith("http");
const kindOf = file => /\.(mp4|webm|mov|mkv)$/i.test(file) ? "video" : /\.(png|jpe?g|webp|gif)$/i.test(file) ? "img" : "audio";

// Captions are cues in the data: a page opened from a folder may not load caption files.
function player(file, cues, language, label) {
  const kind = kindOf(file);
  if (kind === "img") return el("img", {src: file, alt: label, loading: "lazy"});
  const media = el(kind, {src: file, controls: true, preload: "none", "aria-label": label});
  if (kind === "video" && cues.length && window.VTTCue) {
    const track = media.addTextTrack("captions", "Captions", language || "");
    for (const [start, end, text] of cues) track.addCue(new VTTCue(start, end, text.replace(/&/g, "&amp;").replace(/</g, "&lt;")));
    track.mode = "showing";
  }
  return media;
}

const PEAKS = 120;
const waves = new Map();  // file to peaks, or null where it cannot be read
let waveTurn = Promise.resolve();

/** The loudest sample of each part, 0 to 100. */
async function peaksOf(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(String(answer.status));
  const sound = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(await answer.arrayBuffer());
  const samples = sound.getChannelData(0);
  return Array.from({length: PEAKS}, (_, part) => {
    let peak = 0;
    const end = Math.floor((part + 1) * samples.length / PEAKS);
    for (let at = Math.floor(part * samples.length / PEAKS); at < end; at++) peak = Math.max(peak, Math.abs(samples[at]));
    return Math.min(100, Math.round(100 * peak));
  });
}
/** Draws what is heard, one file at a time and only while its card is in view: narrations are read whole for it. */
function drawWave(card) {
  const {wave} = card;
  if (!mayFetch || !wave.file) return;
  const file = wave.file;
  waveTurn = waveTurn.then(async () => {
    if (!inView.has(card.node) || wave.file !== file || wave.drawn === file) return;
    if (!waves.has(file)) waves.set(file, await peaksOf(file).catch(() => null));
    const peaks = waves.get(file);
    if (!peaks || wave.file !== file) return;
    wave.drawn = file;
    wave.path.setAttribute("d", peaks.map((peak, x) => `M${x + 0.5} ${50 - Math.max(1, peak / 2)}V${50 + Math.max(1, peak / 2)}`).join(""));
    wave.node.removeAttribute("hidden");
  });
}
function waveNode() {
  const svg = name => document.createElementNS("http://www.w3.org/2000/svg", name);
  const node = svg("svg"), path = svg("path");
  const set = (target, attributes) => { for (const [key, value] of Object.entries(attributes)) target.setAttribute(key, value); };
  set(node, {class: "wave", viewBox: `0 0 ${PEAKS} 100`, preserveAspectRatio: "none", role: "img", "aria-label": "Waveform of the narration", hidden: ""});
  set(path, {stroke: "currentColor", "stroke-width": "0.7", fill: "none"});
  node.append(path);
  return {node, path, file: "", drawn: ""};
}
function links(file, captions) {
  const row = el("div", {className: "small"});
  const entries = [["Download", file], ...Object.entries(captions).map(([kind, path]) => [kind.toUpperCase(), path])];
  entries.forEach(([name, path], number) => { if (number) row.append(" · "); row.append(el("a", {href: path, download: true, text: name})); });
  return row;
}
function checkTable(checks) {
  const body = el("tbody");
  for (const check of checks) body.append(el("tr", {}, el("td", {text: check.name}), el("td", {text: check.value}), el("td", {text: check.limit}), el("td", {className: check.ok ? "yes" : "no", text: check.ok ? "passed" : "failed"})));
  const head = el("tr", {}, ...["Check", "Value", "Limit", ""].map(text => el("th", {scope: "col", text})));
  return el("div", {className: "scroll"}, el("table", {}, el("thead", {}, head), body));
}
/** A table that is made when it is opened: most never are. */
function foldedChecks(rows) {
  const checks = checksOf(rows);
  const failed = checks.filter(check => !check.ok).length;
  const box = el("details", {className: "small"}, el("summary", {text: `${checks.length} check${checks.length === 1 ? "" : "s"}, ${failed ? `${failed} failed` : "all passed"}`}));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(checkTable(checks)); });
  return box;
}
function state(item) {
  if (item.state === "failed") return el("span", {className: "tag failed", text: "failed"});
  return el("span", {className: item.needs_review ? "tag review" : "tag done", text: item.needs_review ? "needs review" : "done"});
}

// ---- A shot's card

const cards = new Map();  // shot_id to its card while it is drawn
const selections = new Map();  // shot_id to {step: n}, where a person chose otherwise than the run

function selectedOf(shot, take) {
  const n = selections.get(shot.shot_id)?.[take.step] ?? kept.get(shot.shot_id)?.attempts?.[take.step];
  return take.attempts.find(attempt => attempt.n === n && attempt.file) || chosenOf(take);
}
/** Chooses an attempt of a step and shows it in the place of what was shown, from the same moment on if that was playing. */
function select(shot, take, attempt) {
  if (!attempt?.file) return;
  selections.set(shot.shot_id, {...selections.get(shot.shot_id), [take.step]: attempt.n});
  const card = cards.get(shot.shot_id);
  const before = card.media;
  const goesOn = before && before.tagName !== "IMG" && !before.paused;
  card.step = take;
  showOnStage(shot, card, take, attempt);
  if (goesOn && card.media.tagName !== "IMG") {
    const moment = before.currentTime;
    card.media.addEventListener("loadedmetadata", () => { card.media.currentTime = Math.min(moment, card.media.duration || 0); }, {once: true});
    play(card.media);
  }
  paint(shot);
  say(`${shot.shot_id}: ${take.step}, attempt ${attempt.n}${attempt.chosen ? ", chosen by the run" : ""}`);
}
/** The step whose attempts the digits choose: the one that is shown, or the first where there is a choice. */
const stepAtHand = (shot, card) => card.step || engineSteps(shot).find(take => take.attempts.length > 1) || engineSteps(shot)[0];

const facts = attempt => joined([`attempt ${attempt.n}${attempt.chosen ? ", chosen by the run" : ""}`, attempt.lane, attempt.seed === null ? "" : `seed ${attempt.seed}`, seconds(attempt.seconds), money(attempt.cost)]);

/** Shows the clip, or an attempt of a step. */
function showOnStage(shot, card, take, attempt) {
  const {stage, wave} = card;
  const speech = takesOf(shot).find(one => one.step === "speech");
  const isHeard = take ? take === speech : true;
  const file = take ? attempt.file : shot.clip;
  card.media?.pause?.();
  card.media = file ? player(file, take ? [] : detailsOf(shot).cues, shot.language, take ? `${take.step} of ${shot.shot_id}, attempt ${attempt.n}` : `Clip ${shot.shot_id}`) : null;
  const caption = el("div", {className: "caption small soft"});
  if (take) {
    caption.append(el("span", {text: joined([take.step, `attempt ${attempt.n}`])}));
    if (shot.clip) caption.append(el("button", {text: "Back to the clip", "aria-label": `Back to the clip of ${shot.shot_id}`, onclick: () => { card.step = null; showOnStage(shot, card, null); paint(shot); }}));
  } else caption.append(el("span", {text: shot.clip ? "The clip as it is delivered" : "No clip was made"}));
  wave.file = isHeard && speech ? (take ? attempt : selectedOf(shot, speech))?.file || "" : "";
  wave.node.toggleAttribute("hidden", wave.drawn !== wave.file || !wave.file);
  const picture = card.media?.tagName === "AUDIO" && shot.poster ? el("img", {src: shot.poster, alt: "", loading: "lazy"}) : "";
  stage.replaceChildren(picture, card.media || el("div", {className: "empty", text: "nothing to show"}), wave.node, caption);
  if (inView.has(card.node)) enterView(card, shot);
}
/** What is loaded only for cards in view: posters and waveforms. */
function enterView(card, shot) {
  if (card.media?.tagName === "VIDEO" && shot.poster && !card.step) card.media.poster = shot.poster;
  drawWave(card);
}

function stepRow(shot, take, card) {
  const row = el("li");
  const made = chosenOf(take);
  const line = el("div", {className: "step small"}, el("span", {className: "what", text: joined([take.step, take.workflow || take.engine, take.revision]) + (made ? "" : " — not made") + (take.needs_review ? " ⚠" : "")}));
  const parts = {take, attempts: [], below: el("div")};
  const group = el("div", {className: "buttons", role: "group", "aria-label": `Attempts of ${take.step} of ${shot.shot_id}`});
  take.attempts.forEach((attempt, place) => {
    const name = `Show attempt ${attempt.n} of ${take.step}${attempt.chosen ? ", chosen by the run" : ""}${place < 9 ? ` (key ${place + 1})` : ""}`;
    const button = el("button", {text: `#${attempt.n}${attempt.chosen ? " ✓" : ""}`, "aria-label": name, title: attempt.file ? name : attempt.error || "no media", disabled: !attempt.file, onclick: () => select(shot, take, attempt)});
    parts.attempts.push([attempt, button]);
    group.append(button);
  });
  line.append(group);
  if (isEngineStep(take) && made) {
    parts.again = el("input", {type: "checkbox", "aria-label": `Make ${take.step} of ${shot.shot_id} again on retake`});
    parts.again.addEventListener("change", () => tick(shot, take, parts.again.checked));
    line.append(el("label", {title: "A retake makes the ticked steps again"}, parts.again, "retake"));
  }
  row.append(line, parts.below);
  card.steps.push(parts);
  return row;
}
/** Ticks whether a retake makes a step again; a retake of nothing is none. */
function tick(shot, take, isAgain) {
  const others = notAgain(shot).filter(step => step !== take.step);
  const entry = {decision: "", ...kept.get(shot.shot_id)};
  kept.set(shot.shot_id, {...entry, not_again: isAgain ? others : [...others, take.step]});
  if (decisionOf(shot) === "retake" && refusal(shot, "retake")) {
    kept.set(shot.shot_id, entry);
    say(`${shot.shot_id}: a retake needs one step at least; undo takes it back`);
  } else if (decisionOf(shot) === "retake") say(`${shot.shot_id}: ${saidOf(shot)}`);
  keep();
  paint(shot);
}
/** What is known of the attempt that is selected, below its step. */
function paintStep(shot, parts) {
  const selected = selectedOf(shot, parts.take);
  for (const [attempt, button] of parts.attempts) button.setAttribute("aria-pressed", String(attempt === selected));
  if (parts.again) parts.again.checked = !notAgain(shot).includes(parts.take.step);
  if (parts.shown === selected) return;
  parts.shown = selected;
  const failed = parts.take.attempts.filter(attempt => attempt.error && (attempt === selected || !attempt.file));
  const nodes = failed.map(attempt => el("p", {className: "reason small", text: `attempt ${attempt.n}: ${attempt.error}`}));
  if (selected) {
    nodes.push(el("div", {className: "soft small", text: facts(selected)}));
    for (const check of checksOf(selected.checks)) if (!check.ok) nodes.push(el("p", {className: "reason small", text: `${check.name}: ${check.value}, limit ${check.limit}`}));
    if (selected.checks.length) nodes.push(foldedChecks(selected.checks));
  }
  parts.below.replaceChildren(...nodes);
}
function shotCard(shot, place) {
  const node = el("article", {className: "card shot", id: "shot-" + shot.shot_id, tabindex: "-1", "aria-label": `Shot ${shot.shot_id}`, "aria-posinset": place + 1, "aria-setsize": visible.length});
  const card = {node, stage: el("div", {className: "stage"}), steps: [], media: null, step: null, wave: waveNode()};
  card.tag = el("span", {className: "tag decided"});
  const body = el("div", {className: "body"}, el("div", {className: "head"}, el("h3", {text: shot.shot_id}), el("div", {className: "tags"}, card.tag, state(shot))));
  body.append(el("div", {className: "soft small", text: joined([shot.title, shot.voice && `voice ${shot.voice}`, shot.visual, shot.seconds ? seconds(shot.seconds) : "", money(shot.cost)])}));
  if (shot.failed) body.append(el("p", {className: "reason", text: `${shot.failed.step}: ${shot.failed.reason} (${shot.failed.error})`}));
  if (shot.text) body.append(el("p", {className: "text", lang: shot.language, text: shot.text}));
  if (shot.spoken) body.append(el("p", {className: "text soft small"}, "Spoken: ", el("span", {lang: shot.language, text: shot.spoken})));
  if (shot.prompt) body.append(el("p", {className: "prompt soft small", text: shot.prompt}));
  body.append(el("ul", {className: "steps", "aria-label": `Steps of ${shot.shot_id}`}, ...takesOf(shot).map(take => stepRow(shot, take, card))));
  card.decisions = [["accept", "Accept", "a"], ["retake", "Retake", "r"], ["reject", "Reject", "x"]].map(([decision, name, key]) => {
    const button = el("button", {className: decision, text: name, title: `${name} (${key})`, "aria-label": `${name} ${shot.shot_id} (${key})`, onclick: () => decide(shot, decision)});
    return [decision, button];
  });
  card.undo = el("button", {text: "Undo", title: "Undo (u)", "aria-label": `Undo the decision about ${shot.shot_id} (u)`, onclick: () => undo(shot)});
  card.play = el("button", {text: "Play / pause", title: "Play or pause (space)", "aria-label": `Play or pause ${shot.shot_id} (space)`, onclick: () => playOrPause(shot)});
  card.note = el("input", {type: "text", "aria-label": `Note about ${shot.shot_id}`, placeholder: "Note, goes with the decision", autocomplete: "off"});
  card.note.addEventListener("input", () => { kept.set(shot.shot_id, {decision: "", ...kept.get(shot.shot_id), note: card.note.value}); keep(); });
  body.append(el("label", {className: "note small"}, "Note", card.note), el("div", {className: "buttons"}, ...card.decisions.map(([, button]) => button), card.undo, card.play));
  if (shot.clip) body.append(links(shot.clip, detailsOf(shot).captions));
  node.append(card.stage, body);
  cards.set(shot.shot_id, card);
  const made = shot.clip ? null : [...engineSteps(shot)].reverse().find(take => selectedOf(shot, take)?.file);
  card.step = made || null;
  showOnStage(shot, card, made, made && selectedOf(shot, made));
  paint(shot);
  return node;
}
/** Has a card say what is decided and chosen. */
function paint(shot) {
  const card = cards.get(shot.shot_id);
  if (!card) return;
  const decision = decisionOf(shot);
  const isCurrent = visible[current] === shot;
  card.node.className = joined(["card shot", shot.state === "failed" ? "failed" : shot.needs_review ? "review" : "", decision]).replace(/ · /g, " ");
  card.node.setAttribute("aria-current", String(isCurrent));
  card.node.tabIndex = isCurrent ? 0 : -1;
  card.tag.textContent = saidOf(shot);
  card.tag.className = `tag decided ${decision}`;
  for (const [name, button] of card.decisions) button.setAttribute("aria-pressed", String(name === decision));
  card.undo.disabled = !decision;
  card.play.disabled = !card.media || card.media.tagName === "IMG";
  if (card.note !== document.activeElement) card.note.value = kept.get(shot.shot_id)?.note || "";
  for (const parts of card.steps) paintStep(shot, parts);
}
function play(media) {
  media.play().catch(error => { if (error.name !== "AbortError") say(`cannot be played: ${error.message}`); });
}
function playOrPause(shot) {
  const media = cards.get(shot.shot_id)?.media;
  if (!media || media.tagName === "IMG") return say(`${shot.shot_id}: nothing to play`);
  if (media.paused) play(media); else media.pause();
}
// One voice at a time.
document.addEventListener("play", event => { for (const media of document.querySelectorAll("audio, video")) if (media !== event.target) media.pause(); }, true);

// ---- The list: pages of shots, of which those near the window are drawn

const PAGE = 50;
const CARD_HEIGHT = 430;  // px, about; until a page was drawn
let inOrder = [], visible = [], pages = [], current = 0, filter = "all";

const inView = new Set();
const shotAt = new WeakMap();  // card's node to shot
const cardWatch = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting) { inView.delete(target); continue; }
    inView.add(target);
    // Who scrolls past loads nothing.
    setTimeout(() => { const shot = shotAt.get(target); if (inView.has(target) && cards.get(shot.shot_id)?.node === target) enterView(cards.get(shot.shot_id), shot); }, 200);
  }
}, {rootMargin: "100px"});
const pageWatch = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    const page = pages[Number(target.dataset.page)];
    if (page?.node !== target) continue;
    if (isIntersecting) draw(page); else clear(page);
  }
}, {rootMargin: "1500px"});

function draw(page) {
  if (page.isDrawn) return;
  page.isDrawn = true;
  page.node.append(...visible.slice(page.first, page.first + PAGE).map((shot, place) => {
    const node = shotCard(shot, page.first + place);
    shotAt.set(node, shot);
    cardWatch.observe(node);
    return node;
  }));
  page.node.style.height = "";
}
function clear(page) {
  const has = place => place >= page.first && place < page.first + PAGE;
  if (!page.isDrawn || has(current)) return;
  page.isDrawn = false;
  page.node.style.height = `${page.node.offsetHeight}px`;
  for (const shot of visible.slice(page.first, page.first + PAGE)) {
    const card = cards.get(shot.shot_id);
    cardWatch.unobserve(card.node);
    inView.delete(card.node);
    cards.delete(shot.shot_id);
  }
  page.node.replaceChildren();
}
const FILTERS = [
  ["all", "All", () => true],
  ["review", "Needs review", shot => shot.needs_review],
  ["failed", "Failed", shot => shot.state === "failed"],
  ["undecided", "Undecided", shot => !decisionOf(shot)],
];
const searchable = shot => shot.found ??= [shot.shot_id, shot.title, shot.text, shot.prompt].join("\n").toLowerCase();

/** Lists the shots anew. A shot that is decided stays in the list until then, so that it can be undone. */
function list() {
  const [, , passes] = FILTERS.find(([name]) => name === filter);
  const words = byId("search").value.trim().toLowerCase();
  const before = visible[current];
  visible = inOrder.filter(shot => passes(shot) && (!words || searchable(shot).includes(words)));
  current = Math.max(0, visible.indexOf(before));
  pageWatch.disconnect();
  cardWatch.disconnect();
  cards.clear();
  inView.clear();
  pages = Array.from({length: Math.ceil(visible.length / PAGE)}, (_, number) => ({first: number * PAGE, isDrawn: false, node: el("div", {role: "none", "data-page": number})}));
  for (const page of pages) page.node.style.height = `${CARD_HEIGHT * Math.min(PAGE, visible.length - page.first)}px`;
  byId("feed").replaceChildren(...pages.map(page => page.node));
  byId("none").hidden = visible.length > 0;
  if (pages.length) draw(pages[Math.floor(current / PAGE)]);
  for (const page of pages) pageWatch.observe(page.node);
  paintCounts();
}
function show(name) {
  filter = name;
  list();
  if (current > 0) focusOn(current, {isQuiet: true});
  say(`${FILTERS.find(([one]) => one === name)[1]}: ${visible.length} of ${data.shots.length} shots`);
}
/** Gives a shot the focus and brings it into sight. */
function focusOn(place, {isQuiet = false} = {}) {
  if (!visible.length) return;
  const before = visible[current];
  current = Math.min(Math.max(place, 0), visible.length - 1);
  draw(pages[Math.floor(current / PAGE)]);
  if (before) paint(before);
  paint(visible[current]);
  const {node} = cards.get(visible[current].shot_id);
  if (!isQuiet) node.focus({preventScroll: true});
  const {top, bottom} = node.getBoundingClientRect();
  if (top < byId("bar").offsetHeight || bottom > innerHeight) node.scrollIntoView({block: "start"});
}
function paintCounts() {
  const numbers = {accept: 0, retake: 0, reject: 0};
  for (const shot of data.shots) { const decision = decisionOf(shot); if (decision) numbers[decision]++; }
  const decided = numbers.accept + numbers.retake + numbers.reject;
  byId("counts").textContent = `${decided} of ${data.shots.length} decided: ${numbers.accept} accepted, ${numbers.retake} to retake, ${numbers.reject} rejected`;
  byId("download").textContent = `Download decisions (${decided})`;
  byId("download").disabled = byId("copy").disabled = !decided;
  const counts = {all: data.shots.length, review: data.totals.needs_review, failed: data.totals.failed, undecided: data.shots.length - decided};
  for (const button of byId("filters").children) {
    button.textContent = `${button.dataset.name} ${counts[button.dataset.filter]}`;
    button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
  }
}

// ---- Keys

/** A deed about the shot that has the focus. */
const here = deed => key => {
  const shot = visible[current];
  if (shot) deed(shot, cards.get(shot.shot_id), key);
};
function nextStep(shot, card) {
  const steps = takesOf(shot).filter(take => selectedOf(shot, take)?.file);
  if (!steps.length) return say(`${shot.shot_id}: nothing to show`);
  const take = steps[(steps.indexOf(card.step) + 1) % steps.length];
  select(shot, take, selectedOf(shot, take));
}
function chooseNth(shot, card, key) {
  const take = stepAtHand(shot, card);
  const attempt = take?.attempts[Number(key) - 1];
  if (!attempt?.file) return say(`${shot.shot_id}: ${take ? `${take.step} has no attempt for key ${key}` : "it has no steps"}`);
  select(shot, take, attempt);
}
// Who speaks to the computer, or holds other keys, turns them off.
const keysKey = "callsheet:keys";
function keysAreWanted() {
  try { return localStorage.getItem(keysKey) !== "false"; }
  catch { return true; }
}
// What the help lists is what the keys do: one table.
const KEYS = [
  [["j", "ArrowDown", "ArrowRight"], "j ↓ →", "next shot", () => focusOn(current + 1)],
  [["k", "ArrowUp", "ArrowLeft"], "k ↑ ←", "previous shot", () => focusOn(current - 1)],
  [["a"], "a", "accept the shot with the attempts that are chosen", here(shot => decide(shot, "accept"))],
  [["r"], "r", "retake the steps that are ticked", here(shot => decide(shot, "retake"))],
  [["x"], "x", "reject the shot", here(shot => decide(shot, "reject"))],
  [["u"], "u", "undo the decision about the shot", here(undo)],
  [[" "], "space", "play or pause", here(playOrPause)],
  [["s"], "s", "show the next step", here(nextStep)],
  [[..."123456789"], "1 … 9", "choose and show an attempt of the step", here(chooseNth)],
  [["f"], "f", "next filter: all, needs review, failed, undecided", () => show(FILTERS[(FILTERS.findIndex(([name]) => name === filter) + 1) % FILTERS.length][0])],
  [["/"], "/", "search; Escape leaves it", () => byId("search").focus()],
  [["?"], "?", "this help", () => byId("help").showModal()],
];
const isTyping = target => target.matches("textarea, select, input:not([type=checkbox])");
// These do something of their own with space, and players with arrows too.
const isItsOwn = (target, key) => (key === " " && target.matches("button, a, summary, input, audio, video")) || (key.startsWith("Arrow") && target.matches("audio, video"));

document.addEventListener("keydown", event => {
  const {target, key} = event;
  if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open || !data) return;
  if (isTyping(target)) {
    if (key === "Escape") { event.preventDefault(); target.blur(); focusOn(current); }
    return;
  }
  const isQuestion = key === "?";
  if (isItsOwn(target, key) || (!byId("with-keys").checked && !isQuestion)) return;
  const entry = KEYS.find(([keys]) => keys.includes(key));
  if (!entry) return;
  event.preventDefault();
  entry[3](key);
});
// Who clicks wants the keys to go on with that shot: space plays then, and does not press the button again.
byId("feed").addEventListener("click", event => {
  const node = event.target.closest(".shot");
  if (event.detail && event.target.closest("button") && node) node.focus({preventScroll: true});
});
byId("feed").addEventListener("focusin", event => {
  const place = visible.indexOf(shotAt.get(event.target.closest(".shot")));
  if (place < 0 || place === current) return;
  const before = visible[current];
  current = place;
  paint(before);
  paint(visible[current]);
});

// ---- The rest of the page

function programmeCard(programme) {
  const card = el("article", {className: "card" + (programme.state === "failed" ? " failed" : ""), "aria-label": `Programme ${programme.title}`});
  const body = el("div", {className: "body"});
  const media = programme.file && player(programme.file, programme.cues, "", `Programme ${programme.title}`);
  const isFilm = media && media.tagName === "VIDEO";
  if (isFilm && programme.poster) media.poster = programme.poster;
  if (isFilm) card.append(media);
  body.append(el("div", {className: "head"}, el("h3", {text: programme.title}), state(programme)));
  if (media && !isFilm) body.append(media);
  if (programme.failed) body.append(el("p", {className: "reason", text: `${programme.failed.step}: ${programme.failed.reason}`}));
  if (programme.file) {
    const loud = programme.loudness_lufs === null ? "no sound" : `${programme.loudness_lufs.toFixed(1)} LUFS, peak ${programme.true_peak_dbtp.toFixed(1)} dBTP`;
    body.append(el("div", {className: "soft small", text: `${seconds(programme.seconds)} · ${loud}`}), foldedChecks(programme.checks), links(programme.file, programme.captions));
  }
  card.append(body);
  return card;
}
function laneTable() {
  const parts = [["busy", "Busy"], ["swapping", "Swapping models"], ["waiting_for_vram", "Waiting for memory"], ["waiting", "Waiting for others"], ["idle", "Idle"]];
  const share = (row, part) => row.rented > 0 ? row[part] / row.rented : 0;
  const bar = row => el("div", {className: "bar", role: "img", "aria-label": parts.map(([part, name]) => `${name} ${(100 * share(row, part)).toFixed(0)} %`).join(", ")}, ...parts.map(([part]) => { const piece = el("span", {className: part}); piece.style.flexGrow = share(row, part); return piece; }));
  const line = (name, steps, row) => el("tr", {}, el("td", {text: name}), el("td", {text: steps}), el("td", {text: seconds(row.rented)}), el("td", {className: "wide"}, bar(row)), ...parts.map(([part]) => el("td", {text: `${(100 * share(row, part)).toFixed(0)} %`})));
  const count = host => data.lanes.filter(lane => lane.host === host).reduce((sum, lane) => sum + lane.steps, 0);
  const rows = data.lanes.map(lane => line(lane.lane, lane.steps, lane));
  if (data.lanes.length > 1) {
    rows.push(...data.hosts.map(host => line(`${host.host}, all lanes`, count(host.host), host)));
    if (data.hosts.length > 1) rows.push(line("all hosts", data.lanes.reduce((sum, lane) => sum + lane.steps, 0), data.totals.lanes));
  }
  const head = el("tr", {}, ...["Lane", "Steps", "Held", ""].map(text => el("th", {scope: "col", text})), ...parts.map(([part, name]) => el("th", {scope: "col"}, el("span", {className: `key ${part}`}), name)));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
}
/** A part of the page that is made when it is opened. */
function fold(id, place, make, isOpen) {
  const box = byId(id).querySelector("details");
  const target = box.querySelector(place);
  byId(id).hidden = false;
  box.addEventListener("toggle", () => { if (box.open && !target.childElementCount) target.append(...make()); });
  box.open = isOpen;
}
function fillHead() {
  byId("title").textContent = data.batch;
  byId("about").textContent = `${data.provider === "draft" ? "Draft takes" : "Final takes"} of ${data.script} · ${new Date(data.finished).toLocaleString()}`;
  const totals = [["shots done", `${data.totals.done} of ${data.totals.shots}`], ["to review", data.totals.needs_review], ["media", seconds(data.totals.media_seconds)], ["takes made", data.totals.takes_made], ["takes reused", data.totals.takes_reused], ["cost of all takes", money(data.totals.cost)]];
  for (const [name, value] of totals) byId("totals").append(el("li", {}, el("b", {text: value}), el("span", {className: "soft small", text: name})));
  byId("notes").hidden = !data.notes.length;
  byId("notes").querySelector("ul").append(...data.notes.map(text => el("li", {text})));
  if (data.programmes.length) fold("programmes", ".grid", () => data.programmes.map(programmeCard), data.programmes.length <= 6);
  if (data.lanes.length) fold("lanes", ".scroll", () => [laneTable()], false);
}
function fillBar() {
  for (const [name, text] of FILTERS) byId("filters").append(el("button", {"data-filter": name, "data-name": text, title: "Next filter (f)", onclick: () => show(name)}));
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => show(filter), 120);  // not for every letter
  });
  byId("previous").addEventListener("click", () => focusOn(current - 1));
  byId("next").addEventListener("click", () => focusOn(current + 1));
  byId("download").addEventListener("click", download);
  byId("copy").addEventListener("click", copy);
  byId("with-keys").checked = keysAreWanted();
  byId("with-keys").addEventListener("change", () => { try { localStorage.setItem(keysKey, String(byId("with-keys").checked)); } catch { /* for this visit then */ } });
  byId("keys").addEventListener("click", () => byId("help").showModal());
  for (const [, keys, text] of KEYS) byId("help").querySelector("tbody").append(el("tr", {}, el("th", {scope: "row"}, el("kbd", {text: keys})), el("td", {text})));
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${byId("bar").offsetHeight}px`)).observe(byId("bar"));
  // The same report in another tab.
  window.addEventListener("storage", event => { if (event.key === storageKey) { readKept(); data.shots.forEach(paint); paintCounts(); } });
}
function open() {
  readKept();
  fillHead();
  fillBar();
  // What needs a person comes first.
  const urgency = shot => shot.needs_review && shot.state !== "failed" ? 0 : shot.state === "failed" ? 1 : 2;
  inOrder = data.shots.map((shot, place) => [urgency(shot), place, shot]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(entry => entry[2]);
  list();
  // A link to a shot: report.html#shot-lh-01
  const wanted = location.hash.startsWith("#shot-") ? decodeURIComponent(location.hash.slice(6)) : null;
  const place = wanted === null ? -1 : visible.findIndex(shot => shot.shot_id === wanted);
  if (place >= 0) focusOn(place);
}
if (data) open();
else { byId("missing").hidden = false; byId("shots").hidden = true; }
