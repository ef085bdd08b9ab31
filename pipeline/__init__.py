"""Train FCN8s, teach it where to look (GAIN), show that it learnt: data, model, gain, training, metrics, registry."""
