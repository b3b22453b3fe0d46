"""The messaging port and its two implementations, `rabbitmq` and `embedded`."""
