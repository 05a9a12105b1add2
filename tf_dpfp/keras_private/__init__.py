"""Uses of private Keras and TensorFlow API, all in one folder."""
