"""Private training on several devices and machines, by `tf.distribute`."""
