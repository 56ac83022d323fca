"""Stand-in servers: they listen on 127.0.0.1 and speak the real protocols, with their faults."""
