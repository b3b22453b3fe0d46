"""All services in one process, on the embedded queue and a local folder."""
