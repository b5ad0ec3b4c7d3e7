"""Plan, quantize, evaluate and chat; imported lazily so that its light modules stay light."""
