"""Test images with object and ground separated, made from images and masks."""
