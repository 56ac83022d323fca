"""What runs on a GPU host; with ``--draft``, a stand-in that speaks the same protocols on any machine.

    python -m gpu_service --draft --port 8000

It is started as a process and spoken to over HTTP, exactly as a real host is; nothing imports it.
"""
