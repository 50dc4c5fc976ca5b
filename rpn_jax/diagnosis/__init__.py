"""Diagnosis: whether the training input is right, what data are like, whether anchors fit."""
