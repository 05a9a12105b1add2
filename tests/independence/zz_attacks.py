"""Ways to read the batch size off sizes that a proof has lost sight of."""
import tensorflow as tf
from tests.independence import graphs
X = graphs.X
raw = tf.raw_ops

def _size(x):
    return tf.shape(x)[0]

def one(x):
    return tf.ones_like(x[:, 0])

def bf(x):
    return tf.cast(_size(x), tf.float32)

def unknown():
    """A size that is known of no graph, but free of data: 1."""
    return tf.unique(tf.constant([1.0])).y

def lst(t):
    return raw.TensorListFromTensor(tensor=t, element_shape=tf.constant([], tf.int32))

def length(handle, x):
    return x * tf.cast(raw.TensorListLength(input_handle=handle), x.dtype)

def empty_items(x, n, dtype=tf.float32):
    return raw.TensorListReserve(element_shape=tf.constant([], tf.int32), num_elements=n, element_dtype=dtype)

def getitem(h, i):
    return raw.TensorListGetItem(input_handle=h, index=i, element_shape=tf.constant([], tf.int32), element_dtype=tf.float32)

def grown(x):
    h = empty_items(x, 0)
    return tf.while_loop(lambda i, h: i < _size(x),
        lambda i, h: (i + 1, raw.TensorListResize(input_handle=h, size=raw.TensorListLength(input_handle=h) + 1)), (0, h))[1]

def _if(cond, x, a, b):
    f = tf.function(a).get_concrete_function(X)
    g = tf.function(b).get_concrete_function(X)
    return raw.If(cond=cond, input=[x], Tout=[tf.float32], then_branch=f, else_branch=g)[0]

ATT = {
 "max of nothing": lambda x: x * tf.reduce_max(tf.ones([_size(x) - 1])),
 "any of nothing": lambda x: x * tf.cast(tf.reduce_any(tf.fill([_size(x) - 1], True)), x.dtype),
 "min of nothing": lambda x: x * tf.reduce_min(tf.ones([_size(x) - 1])),
 "pad by size": lambda x: tf.pad(tf.ones_like(x), [[0, 0], [0, 1]], constant_values=bf(x)),
 "resize ones": lambda x: tf.reduce_sum(tf.image.resize(tf.ones([_size(x), 4, 4, 1]), tf.stack([_size(x), 2])), [1, 2]),
 "nearest ones": lambda x: tf.reduce_sum(raw.ResizeNearestNeighbor(images=tf.ones([_size(x), 4, 4, 1]), size=tf.stack([_size(x), 2])), [1, 2]),
 "random int": lambda x: x + tf.cast(tf.random.stateless_uniform(tf.shape(x), [1, 2], 0, _size(x) + 1, tf.int32), x.dtype),
 "random int stateful": lambda x: x + tf.cast(tf.random.uniform(tf.shape(x), 0, _size(x) + 1, tf.int32), x.dtype),
 "gamma": lambda x: x + tf.random.stateless_gamma(tf.shape(x), [1, 2], alpha=bf(x)),
 "stride": lambda x: x * tf.reduce_sum(tf.ones([5])[:: _size(x)]),
 "solve": lambda x: x * tf.reduce_sum(tf.linalg.solve(tf.eye(3), tf.ones([3, _size(x)]))),
 "triangular": lambda x: x * tf.reduce_sum(tf.linalg.triangular_solve(tf.eye(3), tf.ones([3, _size(x)]))),
 "triangular of examples": lambda x: tf.reduce_sum(raw.MatrixTriangularSolve(matrix=x[:, :, None] + tf.zeros([1, 3]), rhs=tf.ones([1, 3, _size(x)])), 2),
 "triangular rank": lambda x: x + tf.reduce_sum(raw.MatrixTriangularSolve(matrix=x[:, :, None] + tf.eye(3), rhs=tf.ones([1, 1, 3, 1])), 1)[:, :, 0],
 "resize gradient": lambda x: tf.reduce_mean(raw.ResizeBilinearGrad(grads=x[:, :, None, None], original_image=tf.ones([1, _size(x), 4, 1])), [1, 2]),
 "scale gradient": lambda x: tf.reduce_mean(raw.ScaleAndTranslateGrad(grads=x[:, :, None, None], original_image=tf.ones([1, _size(x), 4, 1]), scale=[1., 1.], translation=[0., 0.]), [1, 2]),
 "pool gradient": lambda x: x * tf.reduce_mean(tf.ones_like(raw.AvgPoolGrad(orig_input_shape=tf.stack([1, _size(x), 1, 1]), grad=tf.ones([1, 1, 1, 1]), ksize=[1, 99, 1, 1], strides=[1, 99, 1, 1], padding="SAME")) ) * tf.reduce_sum(raw.AvgPoolGrad(orig_input_shape=tf.stack([1, _size(x), 1, 1]), grad=tf.ones([1, 1, 1, 1]), ksize=[1, 99, 1, 1], strides=[1, 99, 1, 1], padding="SAME")*0+1),
 "conv gradient": lambda x: x * tf.reduce_sum(raw.Conv2DBackpropInput(input_sizes=tf.stack([1, _size(x), 1, 1]), filter=tf.ones([1, 1, 1, 1]), out_backprop=tf.ones([1, 1, 1, 1]), strides=[1, 99, 1, 1], padding="SAME")*0+1),
 "concat unknown": lambda x: x * tf.reduce_sum(tf.concat([unknown(), one(x)], 0)),
 "categorical": lambda x: x * tf.reduce_sum(tf.ones_like(tf.random.categorical(tf.zeros([_size(x), 3]), 1, dtype=tf.int32)*1.0 if False else tf.cast(tf.random.categorical(tf.zeros([_size(x), 3]), 1), tf.float32))),
 "list resized": lambda x: length(raw.TensorListResize(input_handle=empty_items(x, 2), size=_size(x)), x),
 "list half": lambda x: length(empty_items(x, _size(x) // 2), x),
 "list grown": lambda x: length(grown(x), x),
 "list pushed": lambda x: length(raw.TensorListPushBack(input_handle=lst(one(x)), tensor=1.0), x),
 "list popped": lambda x: length(raw.TensorListPopBack(input_handle=lst(one(x)), element_shape=tf.constant([], tf.int32), element_dtype=tf.float32)[0], x),
 "list pushed read": lambda x: x * getitem(raw.TensorListPushBack(input_handle=lst(one(x)), tensor=2.0), 3),
 "list padded": lambda x: x * getitem(raw.TensorListResize(input_handle=lst(one(x)), size=5), 3),
 "list set beyond": lambda x: x * getitem(raw.TensorListSetItem(input_handle=lst(one(x)), index=5, item=1.0, resize_if_index_out_of_bounds=True), 3),
 "list gathered": lambda x: x * tf.reduce_sum(raw.TensorListGather(input_handle=lst(tf.ones([2])), indices=tf.zeros([_size(x)], tf.int32), element_shape=tf.constant([], tf.int32), element_dtype=tf.float32)),
 "list gathered examples": lambda x: tf.reduce_sum(raw.TensorListGather(input_handle=raw.TensorListFromTensor(tensor=tf.stack([x, x]), element_shape=tf.constant([-1, 3], tf.int32)), indices=tf.zeros([_size(x)], tf.int32), element_shape=tf.constant([-1, 3], tf.int32), element_dtype=tf.float32), 0),
 "list scattered": lambda x: length(raw.TensorListScatterV2(tensor=tf.ones([1]), indices=[0], element_shape=tf.constant([], tf.int32), num_elements=_size(x)), x),
 "if by emptiness": lambda x: _if(tf.fill([_size(x) - 1], 1), x, lambda x: x, lambda x: -x),
 "if of a vector": lambda x: _if(tf.constant([0]), x, lambda x: x - tf.reduce_mean(x, 0), lambda x: x),
 "row and ones": lambda x: tf.map_fn(lambda r: tf.reduce_sum(r[:, None] * o, 1), x) if (o := tf.ones([1, _size(x)])) is not None else x,
 "row beside ones": lambda x: tf.reduce_sum(tf.map_fn(lambda r: o, x, fn_output_signature=tf.TensorSpec([None])), 1) if (o := tf.ones([_size(x)])) is not None else x,
 "gather beyond": lambda x: x * tf.gather(one(x), 5),
 "gather nd beyond": lambda x: x * tf.gather_nd(one(x), [[5]]),
 "gather nd by data": lambda x: tf.gather_nd(one(x), tf.cast(x[:, :1], tf.int32)),
 "gather by data": lambda x: tf.gather(one(x), tf.cast(x[:, 0], tf.int32)),
 "top k uniform unknown": lambda x: tf.cast(tf.math.in_top_k(tf.argmax(x, -1), tf.reshape(tf.ones([_size(x), 1, _size(x)])*tf.reshape(unknown(), [1,-1,1]), tf.stack([-1, _size(x)])), 2), tf.float32),
 "gather rows beyond": lambda x: tf.gather(tf.ones([3 * _size(x)]), tf.range(_size(x)) * 3 + tf.cast(x[:, 0], tf.int32)),
}
if __name__ == "__main__":
    import sys
    for name, f in ATT.items():
        try:
            proof, types = graphs.prove(f, X)
        except Exception as e:
            print("ERR   ", name, type(e).__name__, str(e)[:200].replace("\n"," ")); continue
        r = [q for q in proof.refusals(("abort",)) if q.category.name != "ABORT"]
        print("refused" if r else "PROVED !!!", name, [d.value for d in proof.dependences], "" if not r else str(r[0].reason)[:70])
