"""What is written, and how a narrator reads it: the table that `callsheet text` has to get right.

Assembled from the facts (section 1.1: what the servers' own normalisers read wrongly) and from what scripts
hold: prices, dates, times, telephone numbers, units, codes, addresses, abbreviations, kings and chapters.
"""

import pytest

from callsheet.text import read_text

ENGLISH = [
    ("In the 1770s Dr. Hale paid $3.50.", "In the seventeen seventies Doctor Hale paid three dollars and fifty cents."),
    ("It was 12/03/2024.", "It was December third, twenty twenty-four."),
    ("It cost $1.5 million in 1999.", "It cost one point five million dollars in nineteen ninety-nine."),
    ("Call 1-800-555-0199.", "Call one, eight zero zero, five five five, zero one nine nine."),
    ("Or (555) 123-4567 before 5:30 p.m.", "Or five five five, one two three, four five six seven before five thirty P M."),
    ("Version v2.0 runs at 3.5 GHz.", "version two point zero runs at three point five gigahertz."),
    ("He ran 26.2 miles at 10 km/h in -5°C.",
     "He ran twenty-six point two miles at ten kilometers per hour in minus five degrees Celsius."),
    ("The 21st century began on January 1, 2001.",
     "The twenty-first century began on January first, two thousand and one."),
    ("See https://www.example.com/a-b or info@example.org.",
     "See example dot com slash a dash b or info at example dot org."),
    ("World War II ended in 1945; Henry VIII died in 1547.",
     "World War Two ended in nineteen forty-five; Henry the eighth died in fifteen forty-seven."),
    ("About 3/4 of 1,234 people, i.e. 2 1/2 times more.",
     "About three quarters of one thousand two hundred and thirty-four people, that is two and a half times more."),
    ("At 10:05 we met on Baker St. near St. John's.", "At ten oh five we met on Baker Street near Saint John's."),
    ("She is 5'11\" and works 24/7.", "She is five feet eleven inches and works twenty-four seven."),
    ("The score was 3-2, a 5–10% rise.", "The score was three to two, a five to ten percent rise."),
    ("COVID-19, B2B, MP3 and A4.", "COVID nineteen, B two B, MP three and A four."),
    ("From 1998–2003 it rose 0.5%.", "From nineteen ninety-eight to two thousand and three it rose zero point five percent."),
    ("It's No. 5, Mr. and Mrs. Smith, etc.", "It's number five, Mister and Missus Smith, et cetera."),
    ("Room 007 has 1 kg of sugar and 2 lbs of salt.", "Room zero zero seven has one kilogram of sugar and two pounds of salt."),
    ("The '90s and the 2000s.", "The nineties and the two thousands."),
    ("€1,234.56 or £5.99 or $0.99 or $1.",
     "one thousand two hundred and thirty-four euros and fifty-six cents or five pounds and ninety-nine pence or "
     "ninety-nine cents or one dollar."),
    ("R&D @ 9 a.m. costs ~$20k.", "R and D at nine A M costs about twenty thousand dollars."),
    ("Chapter IV, p. 12, Fig. 3.", "Chapter four, page twelve, Figure three."),
    ("The IP is 192.168.1.1 and 3.14159 is pi.",
     "The IP is one nine two dot one six eight dot one dot one and three point one four one five nine is pi."),
    ("20,000 leagues in 1080p and 4K.", "twenty thousand leagues in ten eighty P and four K."),
    ("5 in the morning, 3 m tall.", "five in the morning, three meters tall."),
    ("He said \"1,000,000 times!\" in 44 BC.", "He said \"one million times!\" in forty-four B C."),
    ("On March 3rd and the 4th of July.", "On March third and the fourth of July."),
    ("2024-03-05 at 08:00", "March fifth, twenty twenty-four at eight o'clock"),
    ("3 x 4 = 12, 3x faster", "three times four equals twelve, three times faster"),
    ("[breath] He left.", "[breath] He left."),
    ("10%-20% and $5-10 and $1,000-$2,000.", "ten to twenty percent and five to ten dollars and one thousand to two thousand dollars."),
    ("ISBN 978-3-16, file_1 and HK$100.", "ISBN nine seven eight, three, one six, file one and one hundred Hong Kong dollars."),
    ("A $20 bill. The answer is no. 5 left.", "A twenty-dollar bill. The answer is no. five left."),
    ("James I think left. James I of England.", "James I think left. James the first of England."),
    ("5 + 3 - 2 = 6, 10^6, 1.5e-3",
     "five plus three minus two equals six, ten to the power of six, one point five times ten to the minus three"),
    ("123 Main St. Apt. 4B. Acme Co. She left.",
     "one hundred and twenty-three Main Street Apt. four B. Acme Company. She left."),
]  # fmt: skip
CHINESE = [
    ("12345678", "一二三四五六七八"),
    ("共12345678人", "共一千二百三十四万五千六百七十八人"),
    ("电话12345678，拨打010-12345678。", "电话幺二三四五六七八，拨打零幺零幺二三四五六七八。"),
    ("我的手机是13812345678，打110。", "我的手机是幺三八幺二三四五六七八，打幺幺零。"),
    ("价格是¥3.50，一共¥1,200元，3.50元。", "价格是三元五角，一共一千二百元，三元五角。"),
    ("5%-10%的人在2024年3月5日10:05到。", "百分之五到百分之十的人在二零二四年三月五日十点零五分到。"),
    ("7×24小时，第1-3章，比分3:2。", "七乘二十四小时，第一到三章，比分三比二。"),
    ("GB18030和i7-9700K，COVID-19。", "GB一八零三零和i七九七零零K，COVID十九。"),
    ("A4纸，5G网络，iPhone15。", "A四纸，五G网络，iPhone十五。"),
    ("公元前221年，20世纪90年代。", "公元前二二一年，二十世纪九十年代。"),
    ("+86 138 1234 5678", "加八六幺三八幺二三四五六七八"),
    ("IP是192.168.1.1，版本1.2.3。", "IP是一九二点一六八点一点一，版本一点二点三。"),
    ("2024Q1增长6.1%，GDP是100万亿元。", "二零二四Q一增长百分之六点一，GDP是一百万亿元。"),
    ("气温-5℃，36.5°C，100km/h。", "气温负五摄氏度，三十六点五摄氏度，每小时一百公里。"),
    ("3/4的人有2个孩子，200多人。", "四分之三的人有两个孩子，两百多人。"),
    ("2号楼302室，验证码是4821。", "二号楼三零二室，验证码是四八二一。"),
    ("访问www.baidu.com。", "访问baidu点com。"),
    ("呃，啊，２０２４年２月。", "呃，啊，二零二四年二月。"),
    ("12306客服，身高1米8。", "幺二三零六客服，身高一米八。"),
    ("房间号808，订单号20240305001。", "房间号八零八，订单号二零二四零三零五零零一。"),
    ("$3.50和€20，1.5万元，¥1.5万。", "三点五美元和二十欧元，一点五万元，一点五万元。"),
    ("10~20人，3-5天，16:9。", "十到二十人，三到五天，十六比九。"),
    ("他买了12,345.67元的东西。", "他买了一万二千三百四十五点六七元的东西。"),
    ("2月2日，12月2日，第2天，2天。", "二月二日，十二月二日，第二天，两天。"),
    ("约3/4，大约1/2，HK$100。", "约四分之三，大约二分之一，一百港元。"),
    ("下载http://a.cn/b2共5个，打500米。", "下载a点cn斜杠b二共五个，打五百米。"),
    ("2020-2024年，5月1日-5月3日。", "二零二零到二零二四年，五月一日到五月三日。"),
]
OTHERS = [
    ("de", "Bei 10 hoch 7 sind es 50 %.", "Bei zehn hoch sieben sind es fünfzig Prozent."),
    ("de", "Am 3. Mai 1999 zahlte er 1.234,56 € für 3,5 kg.",
     "Am dritten Mai neunzehnhundertneunundneunzig zahlte er eintausendzweihundertvierunddreißig Euro "
     "sechsundfünfzig für drei Komma fünf Kilogramm."),
    ("de", "Es waren 1.000.000 Menschen bei -5 °C.", "Es waren eine Million Menschen bei minus fünf Grad Celsius."),
    ("fr", "Le 1 mai, il a payé 12,50 € pour 1 kg, soit 80 %.",
     "Le premier mai, il a payé douze euros cinquante pour un kilogramme, soit quatre-vingts pour cent."),
    ("de", "Der 2. Weltkrieg, im 21. Jahrhundert, 10:30 Uhr.",
     "Der zweite Weltkrieg, im einundzwanzigsten Jahrhundert, zehn Uhr dreißig."),
    ("fr", "À 10h30, le 1er mai, 2e étage.", "À dix heures trente, le premier mai, deuxième étage."),
    ("es", "El 1.º de mayo a las 10:30.", "El primero de mayo a las diez y media."),
    ("ja", "¥150万です", "百五十万円です"),
    ("fr", "En 1999, 1 234 567 personnes.",
     "En mille neuf cent quatre-vingt-dix-neuf, un million deux cent trente-quatre mille cinq cent soixante-sept "
     "personnes."),
    ("es", "Pagó 1.234,56 € por 3,5 kg, un 25 %.",
     "Pagó mil doscientos treinta y cuatro euros cincuenta y seis por tres coma cinco kilogramos, un veinticinco por "
     "ciento."),
    ("es", "1 € y 1 kg", "un euro y un kilogramo"),
    ("ja", "2024年3月5日に1,234円を払い、3.5%増えた。", "二千二十四年三月五日に千二百三十四円を払い、三点五パーセント増えた。"),
    ("ko", "2024년 3월 5일에 1,234원.", "이천이십사년 삼월 오일에 천이백삼십사원."),
    ("ko", "5kg을 들었다.", "오 킬로그램을 들었다."),
    ("it", "Nel 1999 erano 1.234, il 50%.",
     "Nel millenovecentonovantanove erano milleduecentotrentaquattro, il cinquanta per cento."),
    ("ru", "Их было 21.", "Их было двадцать один."),
]  # fmt: skip
CASES = [("en", *case) for case in ENGLISH] + [("zh", *case) for case in CHINESE] + OTHERS


@pytest.mark.parametrize(("language", "written", "spoken"), CASES)
def test_it_is_read_as_a_narrator_reads_it(language: str, written: str, spoken: str) -> None:
    assert " ".join(piece.spoken for piece in read_text(written, language)) == spoken


@pytest.mark.parametrize(("language", "_written", "spoken"), CASES)
def test_what_is_in_words_stays(language: str, _written: str, spoken: str) -> None:
    """So that a server's own normaliser, or a second pass of ours, finds nothing to change."""
    again = " ".join(piece.spoken for piece in read_text(spoken, language))
    assert again == spoken


def test_british_english_says_the_day_first() -> None:
    assert read_text("On 12/03/2024.", "en-GB")[0].spoken == "On the twelfth of March twenty twenty-four."


def test_numbers_of_an_unknown_language_stay_as_written() -> None:
    assert read_text("Jumla ni 12.", "sw")[0].spoken == "Jumla ni 12."
