"""``tenth plan capacity``: what a model needs of a GPU, from facts and arithmetic alone; no service is asked."""
