"""The words that the rules know: names of torch, and what people call things.

Owns: these sets. Must not decide anything.
"""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


AVERAGING = _set(
    """ema target targets teacher momentum shadow old prev previous best frozen snapshot avg average averaged backup
    polyak slow delayed lagged swa mean reference ref init initial"""
)
"""Said of copies that follow slowly, or are kept for a while."""
CONVERTING = _set(
    """convert converts converted converting conversion export exporting port migrate load loading from import fuse
    fused merge fold folded replace replaced swap prune pruned quantize quantized quantizer resize resized extend
    expand shrink to transplant transfer"""
)
"""Said of functions after which one end goes away."""
SHARING = _set(
    """tie ties tied tying share shares shared sharing same reuse reused recurrent universal looped looping loop
    siamese unrolled albert"""
)
"""Said of sharing that is meant."""
WITH_PARAMETERS = _set(
    """Linear Bilinear LazyLinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d LazyConv1d
    LazyConv2d LazyConv3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d Embedding EmbeddingBag RNN
    LSTM GRU RNNCell LSTMCell GRUCell BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm LazyBatchNorm1d
    LazyBatchNorm2d LazyBatchNorm3d LayerNorm GroupNorm RMSNorm PReLU MultiheadAttention Transformer
    TransformerEncoder TransformerDecoder TransformerEncoderLayer TransformerDecoderLayer AdaptiveLogSoftmaxWithLoss"""
)
"""The layers of torch.nn that have parameters, unless their arguments say otherwise."""
STARRED = _set("""Parameter ParameterList ParameterDict Module ModuleList ModuleDict Sequential functional""")
"""What `from torch.nn import *` brings, beside the layers."""
VIEWS = _set(
    """t transpose permute view reshape flatten squeeze unsqueeze narrow expand expand_as view_as swapaxes swapdims
    movedim moveaxis select unflatten adjoint ravel"""
)
"""The methods and functions that give a view of a tensor."""
NO_MODULE = _set("""config cfg conf args opt opts hparams batch data df state_dict""")
"""Names of what is no module, whatever its attributes are called."""
WITHOUT_EFFECT = _set("""clone contiguous to float half type_as cpu cuda""")
"""Methods that change nothing where the values are copied anyway."""
SELECTING = _set("""argmin argmax topk sort argsort min multinomial one_hot""")
"""What chooses by value, so that no gradient is lost before it."""
OPERATIONS = _set(
    """linear bilinear matmul mm bmm addmm mv einsum embedding embedding_bag conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d tensordot"""
)
"""The functions and methods that compute with a weight."""
TIES = _set("""tie ties tied tying""")
"""Said of tying, and of nothing else."""
HEADS = _set("""head output out proj projection logits classifier unembed lm decoder""")
"""What layers are called that read such a table back."""
TABLES = _set("""embed embedding embeddings emb wte tok vocab""")
"""What tables of embeddings are called."""
