"""Every use of private Keras and TensorFlow API, and nothing else."""
