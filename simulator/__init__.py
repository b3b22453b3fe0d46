"""Stand-ins for the outside world on loopback: a vendor that misbehaves on demand, its files, a private broker."""
