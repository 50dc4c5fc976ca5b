"""Preparation of VOC and COCO from their official archives, once, with TensorFlow Datasets."""
