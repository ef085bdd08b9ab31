"""Images and masks: drawn or fetched (synthetic, voc), checked and listed (manifest), fed to the network (loading)."""
