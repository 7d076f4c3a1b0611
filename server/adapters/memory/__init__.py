"""Which adapter lies where in device and host memory: banks, slots, random matrices."""
