"""The ways to clip that the examples offer, by name."""

import tf_dpfp

CLIPPINGS = {
    "flat": tf_dpfp.Flat(),
    "per_layer": tf_dpfp.PerLayer(),
    "adaptive": tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive()),
    "automatic": tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Automatic()),
}
