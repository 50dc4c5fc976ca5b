"""Data sets: VOC and COCO folders, TensorFlow Datasets, drawn shapes, folders of images."""
