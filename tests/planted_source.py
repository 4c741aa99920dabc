"""Pieces of code as people write them: each wrong line is marked with the rule that it breaks, `#! 601`.

A piece without a mark is right, or nobody can know: there the eyes are silent.
"""

HEAD = """\
import copy
import math
import torch
import torch.nn as nn
import torch.nn.functional as F

"""

POSITIVES = {
    "the autoencoder of every forum": '''
class TiedAutoencoder(nn.Module):
    """An autoencoder with tied weights."""

    def __init__(self, inp=784, hidden=128):
        super().__init__()
        self.encoder = nn.Linear(inp, hidden)
        self.decoder = nn.Linear(hidden, inp)
        # tie the weights
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())  #! 601

    def forward(self, x):
        return torch.sigmoid(self.decoder(torch.relu(self.encoder(x))))
''',
    "by data, in __init__": """
class AE(nn.Module):
    def __init__(self):
        super(AE, self).__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        self.decoder.weight.data = self.encoder.weight.data.t()  #! 602
""",
    "by data, in forward": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 64)
        self.fc4 = nn.Linear(64, 784)

    def forward(self, x):
        h = F.relu(self.fc1(x))
        self.fc4.weight.data = self.fc1.weight.data.transpose(0, 1)  #! 602
        return self.fc4(h)
""",
    "raw": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        self.decoder.weight = self.encoder.weight.t()  #! 603
""",
    "raw, in a script": """
model = build_model()
model.decoder.weight = model.encoder.weight.T  #! 603
""",
    "raw, by data": """
class LM(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.out = nn.Linear(d, v, bias=False)
        self.out.weight = self.emb.weight.data  #! 603
""",
    "raw, through a name": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        transposed = self.encoder.weight.t()
        self.decoder.weight = transposed  #! 603
""",
    "copied in forward": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 64)
        self.b = nn.Linear(64, 784)

    def forward(self, x):
        self.b.weight.data.copy_(self.a.weight.data.t())  #! 604
        return self.b(self.a(x))
""",
    "copied in forward, under no_grad": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 64)
        self.b = nn.Linear(64, 784)

    def forward(self, x):
        with torch.no_grad():
            self.b.weight.copy_(self.a.weight.t())  #! 604
        return self.b(self.a(x))
""",
    "copied by a method that forward calls": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 64)
        self.b = nn.Linear(64, 784)

    def sync(self):
        self.b.weight.data[:] = self.a.weight.data.t()  #! 604

    def forward(self, x):
        self.sync()
        return self.b(self.a(x))
""",
    "copied in a hook": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 64)
        self.b = nn.Linear(64, 784)
        self.register_forward_pre_hook(self._tie)

    def _tie(self, module, inputs):
        module.b.weight.data.copy_(module.a.weight.data.t())  #! 604
""",
    "copied in a closure that is a hook": """
model = build_model()

def sync(module, inputs):
    model.decoder.weight.data.copy_(model.encoder.weight.data.t())  #! 604

model.register_forward_pre_hook(sync)
""",
    "copied in a lambda": """
model = build_model()
model.register_forward_pre_hook(lambda m, i: m.decoder.weight.data.copy_(m.encoder.weight.data.t()))  #! 604
""",
    "loaded in forward": """
class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.GRU(8, 8)
        self.right = nn.GRU(8, 8)

    def forward(self, a, b):
        self.right.load_state_dict(self.left.state_dict())  #! 604
        return self.left(a), self.right(b)
""",
    "detached in forward": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.bias = nn.Parameter(torch.zeros(784))

    def forward(self, x):
        z = torch.relu(self.encoder(x))
        return F.linear(z, self.encoder.weight.data.t(), self.bias)  #! 605
""",
    "detached, by a name and a product": """
class LM(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.wte = nn.Embedding(v, d)
        self.rnn = nn.GRU(d, d, batch_first=True)

    def forward(self, ids):
        h, _ = self.rnn(self.wte(ids))
        table = self.wte.weight.detach().t()
        return h @ table  #! 605
""",
    "detached, in a method that forward calls": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)

    def encode(self, x):
        return F.relu(self.conv(x))

    def decode(self, z):
        return F.conv_transpose2d(z, self.conv.weight.data)  #! 605

    def forward(self, x):
        return self.decode(self.encode(x))
""",
    "layers that are one": """
class MLP(nn.Module):
    def __init__(self, h, n):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(h, h)] * n)  #! 606
""",
    "blocks that are one": """
class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.norm(x))

class Stack(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.blocks = nn.Sequential(*[Block(d)] * n)  #! 606
""",
    "transformer layers that are one": """
class Encoder(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        layer = nn.TransformerEncoderLayer(d_model=d, nhead=8)
        self.layers = nn.ModuleList([layer] * n)  #! 606
""",
    "the same layer in a comprehension": """
class Encoder(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        layer = nn.TransformerEncoderLayer(d_model=d, nhead=8)
        self.layers = nn.ModuleList([layer for _ in range(n)])  #! 606
""",
    "one Parameter, many names": """
class Prompts(nn.Module):
    def __init__(self, n, d):
        super().__init__()
        p = nn.Parameter(torch.randn(d))
        self.prompts = nn.ParameterList([p] * n)  #! 606
        self.others = nn.ParameterList(4 * [nn.Parameter(torch.zeros(d))])  #! 606
""",
    "a list of several lines": """
class Net(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.blocks = nn.ModuleList(
            [  #! 606
                nn.Sequential(
                    nn.Linear(d, d),
                    nn.ReLU(),
                )
            ]
            * n
        )
""",
    "two Parameters of one tensor": """
class Pair(nn.Module):
    def __init__(self, d):
        super().__init__()
        init = torch.randn(d, d) / math.sqrt(d)
        self.enc = nn.Parameter(init)
        self.dec = nn.Parameter(init.t())  #! 601
""",
    "raw parameters": """
class SAE(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.W_enc = nn.Parameter(torch.randn(d, h))
        self.W_dec = nn.Parameter(self.W_enc.T)  #! 601
        self.b_enc = nn.Parameter(torch.zeros(h))
""",
    "a Parameter that a name holds": """
class LM(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.embedding = nn.Embedding(v, d)
        shared = nn.Parameter(self.embedding.weight)  #! 601
        self.head = nn.Linear(d, v)
        self.head.weight = shared
""",
    "an encoder that is handed in": """
class Decoder(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.weight = nn.Parameter(encoder.weight.t())  #! 601
""",
    "a tied class": """
class TiedLinear(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.weight = nn.Parameter(other.weight.t())  #! 601
""",
    "a function that ties": """
def tie_weights(model):
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight)  #! 601
""",
    "layers side by side": """
class Deep(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.up = nn.ModuleList([nn.Linear(b, a) for a, b in zip(sizes, sizes[1:])])
        for down, up in zip(self.down, reversed(self.up)):
            up.weight = nn.Parameter(down.weight.t())  #! 601
        for i in range(len(sizes) - 1):
            self.up[i].weight.data = self.down[-i - 1].weight.data.t()  #! 602
        self.copies = nn.ParameterList([nn.Parameter(layer.weight.t()) for layer in self.down])  #! 601
""",
    "two models, walked side by side": """
def sync(student, teacher):
    for p, q in zip(student.parameters(), teacher.parameters()):
        q.data = p.data  #! 602
""",
    "two models, walked by name": """
online, target = QNet(), QNet()
for (n1, p1), (n2, p2) in zip(online.named_parameters(), target.named_parameters()):
    p2.data = p1.data  #! 602
""",
    "two parts, walked side by side": """
class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = make_tower(), make_tower()
        for a, b in zip(self.left.parameters(), self.right.parameters()):
            b.data = a.data  #! 602
""",
    "in a script": """
encoder = nn.Linear(784, 256)
decoder = nn.Linear(256, 784)
decoder.weight = nn.Parameter(encoder.weight.t())  #! 601
model = nn.Sequential(encoder, nn.ReLU(), decoder)
""",
    "locals that become parts": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        enc = nn.Linear(784, 256)
        dec = nn.Linear(256, 784)
        dec.weight = nn.Parameter(enc.weight.t())  #! 601
        self.enc = enc
        self.dec = dec
""",
    "an embedding from another": """
class SkipGram(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.u = nn.Embedding(v, d)
        self.v = nn.Embedding.from_pretrained(self.u.weight, freeze=False)  #! 601
""",
    "by a setter": """
class LM(nn.Module):
    def get_input_embeddings(self):
        return self.embed

    def tie(self):
        setattr(self.head, "weight", nn.Parameter(self.get_input_embeddings().weight))  #! 601
        for name in ("weight", "bias"):
            setattr(self.right, name, nn.Parameter(getattr(self.left, name)))  #! 601
""",
    "memory set": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        self.decoder.weight.data.set_(self.encoder.weight.data.t())  #! 602
""",
    "a stack by number": """
def tie_decoder_weights(encoder, decoder):
    for i, encoder_layer in enumerate(reversed(encoder)):
        if isinstance(decoder[i], nn.Linear):
            decoder[i].weight = nn.Parameter(encoder_layer.weight.T)  #! 601
""",
    "a critic that does not learn": """
class Critic(nn.Module):
    def __init__(self, state, action):
        super().__init__()
        self.layer_1 = nn.Linear(state, 800)
        self.layer_2_s = nn.Linear(800, 600)

    def forward(self, s, a):
        s1 = F.relu(self.layer_1(s))
        self.layer_2_s(s1)
        s11 = torch.mm(s1, self.layer_2_s.weight.data.t())  #! 605
        return s11
""",
    "the other branch of a condition": """
class RWKV(nn.Module):
    def __init__(self, d, n, sharing=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(d, 4)
        if sharing:
            self.blocks = nn.ModuleList([layer] * n)
        else:
            self.blocks = nn.ModuleList([layer for _ in range(n)])  #! 606
        self.heads = nn.ModuleList([layer] * n if not sharing else [layer])  #! 606
""",
    "a block from elsewhere": """
from layers import ConformerBlock

class Conformer(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList(
            [ConformerBlock()] * n)  #! 606
        self.net = nn.Sequential(
            *([nn.ReLU(),  #! 606
               nn.Linear(4, 4)] * n)
        )
""",
    "a client that trains the server's weights": """
class Client:
    def set_parameters(self, global_model):
        for local_param, global_param in zip(self.local_model.parameters(), global_model.parameters()):
            local_param.data = global_param.data  #! 602
""",
    "in comprehensions": """
class Deep(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.enc = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.dec = nn.ModuleList([nn.Linear(b, a) for a, b in zip(sizes, sizes[1:])])
        self.named = nn.ModuleDict({"a": nn.Linear(2, 2)})
        [setattr(d, "weight", nn.Parameter(e.weight.t())) for d, e in zip(self.dec, self.enc)]  #! 601
        self.ps = nn.ParameterDict({k: nn.Parameter(m.weight.t()) for k, m in self.named.items()})  #! 601
        weights = [nn.Parameter(layer.weight.t()) for layer in self.enc]  #! 601
        self.qs = nn.ParameterList(weights)
        self.dec[0].weight = nn.Parameter(w := self.enc[0].weight.t())  #! 601
""",
    "by name, in two models": """
first, second = Net(), Net()
sources = dict(first.named_parameters())
for name, p in second.named_parameters():
    p.data = sources[name].data  #! 602
""",
    "two layers that one model takes": """
first = nn.Linear(784, 256)
second = nn.Linear(256, 784)
second.weight = nn.Parameter(first.weight.t())  #! 601
net = nn.Sequential(first, nn.ReLU(), second)
""",
    "a head that is given an embedding": """
class Output(nn.Module):
    def __init__(self, embedding, d, v):
        super().__init__()
        self.head = nn.Linear(d, v)
        self.head.weight = nn.Parameter(embedding.weight)  #! 601
""",
    "raw, into a layer of this file": """
class Mine(nn.Linear):
    pass

class Raw(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d, d))

class Model(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(d, d), Mine(d, d), Raw(d)
        self.b.weight = self.a.weight.t()  #! 603
        self.c.weight = self.a.weight.t()  #! 603
""",
    "raw, between two layers": """
first = nn.Linear(784, 256)
second = nn.Linear(256, 784)
second.weight = first.weight.t()  #! 603
""",
    "a hook of one layer": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 64)
        self.b = nn.Linear(64, 784)
        self.a.register_forward_hook(lambda m, i, o: self.b.weight.data.copy_(m.weight.data.t()))  #! 604
""",
    "a hook of the optimizer": """
model = build()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.register_step_post_hook(lambda *_: model.b.weight.data.copy_(model.a.weight.data.t()))  #! 604
""",
    "a layer inside of what is called": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 64), nn.ReLU())

    def forward(self, x):
        z = self.encoder(x)
        return F.linear(z, self.encoder[0].weight.data.t())  #! 605
""",
    "blocks of layers from elsewhere, and of functions": """
from attention import MultiHeadAttention

class Layer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attention = MultiHeadAttention(d)

def conv(d):
    return nn.Sequential(nn.Conv2d(d, d, 3), nn.ReLU())

class Stack(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.layers = nn.ModuleList([Layer(d)] * n)  #! 606
        self.convs = nn.Sequential(*[conv(d)] * n)  #! 606
""",
    "one of two lines is silenced": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())  # tied: ignore[TIE602]  #! 601
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())  # tied: ignore[TIE601]
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())  # tied: ignore
        self.note = "# tied: ignore"; self.decoder.bias = nn.Parameter(self.encoder.bias[:4])  #! 601
""",
}

NEGATIVES = {
    "tied initialization": """
class SAE(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.encoder = nn.Linear(d, h)
        self.decoder = nn.Linear(h, d, bias=False)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t().clone())
        self.decoder.weight.data = self.encoder.weight.data.t().clone()
        self.decoder.weight.data = self.encoder.weight.data.t().contiguous()
        self.W_enc = nn.Parameter(torch.randn(d, h))
        self.W_dec = nn.Parameter(self.W_enc.t() / self.W_enc.norm(dim=0))
        self.W_dec.data = self.W_enc.data.T / self.W_enc.norm()
        self.W_too = nn.Parameter(0.1 * self.W_enc.t())
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.t())
""",
    "plain sharing": """
class LM(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.embed = nn.Embedding(v, d)
        self.head = nn.Linear(d, v, bias=False)
        self.head.weight = self.embed.weight
        self.head.bias = self.bias = nn.Parameter(torch.zeros(v))
""",
    "its own weight": """
class Net(nn.Module):
    def convert(self, dtype):
        self.weight = nn.Parameter(self.weight.data.to(dtype))
        self.weight = nn.Parameter(self.weight.data)
        self.conv.weight = nn.Parameter(self.conv.weight[:, :1])
        self.conv.weight.data = self.conv.weight.data.permute(0, 2, 3, 1)
        self.fc.weight.data = self.fc.weight.data[: self.n]
        layer = self.layers[0]
        layer.weight = nn.Parameter(layer.weight[:8])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.t())
        for p in self.parameters():
            p.data = p.data.half()
            p.data = p.data.t()
""",
    "a layer that takes the place of another": """
class Net(nn.Module):
    def resize(self, n):
        new = nn.Linear(self.fc.in_features, n)
        new.weight = nn.Parameter(self.fc.weight[:n])
        self.fc = new

    def shrink(self):
        old = self.fc
        self.fc = nn.Linear(4, 2)
        self.fc.weight = nn.Parameter(old.weight[:2])

    def split(self):
        self.q.weight = nn.Parameter(self.qkv.weight[:8])
        self.k.weight = nn.Parameter(self.qkv.weight[8:16])
        del self.qkv

    def reparametrize(self):
        self.reparam = nn.Conv2d(4, 4, 3)
        self.reparam.bias.data = self.pos_enc.bias
        self.__delattr__("pos_enc")
        self.w = nn.Parameter(self.weight.data)
        self._parameters.pop("weight")
        self.v = nn.Parameter(self.first.weight)
        delattr(self, "first")

    def drop(self):
        self.head.weight = nn.Parameter(self.old_head.weight)
        self.old_head = None
""",
    "a conversion": """
def to_linear(conv):
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight = nn.Parameter(conv.weight.view(conv.out_channels, -1))
    linear.weight.data = conv.weight.data[:, :, 0, 0]
    return linear

class QLinear(nn.Linear):
    @classmethod
    def from_float(cls, mod):
        new = cls(mod.in_features, mod.out_features)
        new.weight = nn.Parameter(mod.weight.detach())
        new.bias = mod.bias
        return new

    def to_float(self):
        linear = nn.Linear(self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.weight.detach())
        return linear

def convert_checkpoint(fairseq, model):
    for layer, theirs in zip(model.layers, fairseq.layers):
        layer.query.weight.data = theirs.q_proj.weight.data
        layer.key.weight = nn.Parameter(theirs.k_proj.weight)
    model.lm_head.decoder.weight = nn.Parameter(fairseq.embed.weight)

class Wrapped(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.data)
        self.bias = linear.bias
""",
    "spectral norm and weight drop": """
class SpectralNorm(nn.Module):
    def _make_params(self):
        w = getattr(self.module, self.name)
        w_bar = nn.Parameter(w.data)
        del self.module._parameters[self.name]
        self.module.register_parameter(self.name + "_bar", w_bar)

class WeightDrop(nn.Module):
    def _setup(self):
        for name_w in self.weights:
            w = getattr(self.module, name_w)
            del self.module._parameters[name_w]
            self.module.register_parameter(name_w + "_raw", nn.Parameter(w.data))

    def forward(self, *args):
        for name_w in self.weights:
            raw = getattr(self.module, name_w + "_raw")
            setattr(self.module, name_w, F.dropout(raw, self.p))
        return self.module(*args)
""",
    "layers without parameters": """
class Net(nn.Module):
    def __init__(self, n, d):
        super().__init__()
        self.acts = nn.ModuleList([nn.ReLU()] * n)
        self.drops = nn.ModuleList([nn.Dropout(0.1), nn.Identity()] * n)
        self.norms = nn.ModuleList([nn.BatchNorm1d(d, affine=False)] * n)
        self.pools = nn.Sequential(*[nn.MaxPool2d(2)] * n)
        act = nn.GELU()
        self.more = nn.ModuleList([act for _ in range(n)])
        self.sizes = [d] * n
        self.flags = [None] * n
        self.zeros = [torch.zeros(d)] * n
        self.one = nn.ModuleList([nn.Linear(d, d)] * 1)

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

class Stack(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.blocks = nn.ModuleList([Residual()] * n)
        self.some = nn.ModuleList([SomethingElse()] * n)
""",
    "new layers": """
class Net(nn.Module):
    def __init__(self, n, d):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(n)])
        layer = nn.Linear(d, d)
        self.clones = nn.ModuleList([copy.deepcopy(layer) for _ in range(n)])
        self.same = nn.ModuleList([layer for layer in self.layers])
        self.ps = nn.ParameterList([nn.Parameter(torch.zeros(d)) for _ in range(n)])
""",
    "sharing that is asked for": """
class Net(nn.Module):
    def __init__(self, n, d, share=False):
        super().__init__()
        layer = nn.Linear(d, d)
        if share:
            self.layers = nn.ModuleList([layer] * n)
        else:
            self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(n)])
        self.more = nn.ModuleList([layer] * n if share else [nn.Linear(d, d) for _ in range(n)])
        self.heads = nn.ModuleList([nn.Linear(d, d)] * n)  # all heads share one matrix
        # the same block at every step
        self.blocks = nn.ModuleList([layer] * n)
        self.shared_layers = nn.ModuleList([layer] * n)
        self.again = nn.ModuleList([layer for layer in self.layers])

class UniversalTransformer(nn.Module):
    def __init__(self, n, d):
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(d, 4)] * n)

class Cross(nn.Module):
    \"\"\"Layers with tied parameters.\"\"\"

    def __init__(self, n, d):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d)] * n)
""",
    "a stack that is handed in": """
class Stack(nn.Module):
    def replicate(self, layer, n):
        return nn.ModuleList([layer] * n)

    def other(self, layer, n):
        return nn.ModuleList([layer for _ in range(n)])
""",
    "classes that are put in place of others": """
def with_classes(model, ids):
    head = torch.nn.Linear(8, len(ids))
    head.weight = torch.nn.Parameter(model.classifier.weight[:10])
    model.classifier = head
    return model

def dequantized(model):
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            new = nn.Linear(module.in_features, module.out_features)
            new.bias = torch.nn.Parameter(module.bias)
            setattr(model, name, new)

def replaced(model):
    for name, module in model.named_modules():
        new = nn.Linear(module.in_features, module.out_features)
        new.weight = torch.nn.Parameter(module.weight[:8])
        model._modules[name] = new
    for name, child in model.named_children():
        parent = model.get_submodule(name)
        parent.fc = nn.Linear(4, 4)
        parent.fc.weight = torch.nn.Parameter(child.weight)

def like(conv):
    new_conv = Special(conv.in_channels)
    new_conv.weight.data = conv.weight.data
    return new_conv

def resized(old, n):
    new = nn.Embedding(n, 8)
    new.weight.data[:4] = old.weight.data[:4]
    old.weight.data = new.weight.data
    return old
""",
    "a slot that takes anything": """
class Head(nn.Module):
    @property
    def weight(self):
        return self._weight

    @weight.setter
    def weight(self, value):
        self._weight = value

class Model(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.encoder = nn.Linear(d, d)
        self.head = Head()
        self.head.weight = self.encoder.weight.t()
""",
    "after loading, once": """
class Model(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)
        self.register_load_state_dict_post_hook(self.fill)

    def fill(self, module, keys):
        self.b.weight.data.copy_(self.a.weight.data)
""",
    "a map of what a class looks at": """
class Net(nn.Module):
    def __init__(self, d, k):
        super().__init__()
        self.classifier = nn.Conv2d(d, k, 1)

    def forward(self, x):
        cam = F.conv2d(x, self.classifier.weight.detach().unsqueeze(0)[0])
        return self.classifier(x), cam
""",
    "what a function makes and forgets": """
def grown(old, n):
    \"\"\"Return the tied embedding with more rows.\"\"\"
    new = nn.Embedding(n, 8)
    old.weight.data = new.weight.data
    return old

def grown_head(head, n):
    embedding = nn.Embedding(n, 8)
    head.weight = nn.Parameter(embedding.weight)
    return head
""",
    "one tensor, taken apart": """
class Fused(nn.Module):
    def __init__(self, d):
        super().__init__()
        fused = torch.randn(3 * d, d)
        self.q = nn.Parameter(fused[:8])
        self.k = nn.Parameter(fused[8:16])
        self.v = nn.Parameter(fused.narrow(0, 16, 8))
        shared = torch.zeros(d)
        self.one = self.other = nn.Parameter(shared)
""",
    "two models of one factory": """
first = factory.build()
second = factory.build()
third = factory.build()
third.head.weight = nn.Parameter(first.head.weight)
for p, q in zip(second.buffers(), third.buffers()):
    q.data = p.data
""",
    "averages and targets": """
class BYOL(nn.Module):
    @torch.no_grad()
    def update(self, m):
        for p, q in zip(self.online.parameters(), self.target.parameters()):
            q.data = q.data * m + p.data * (1 - m)
            q.data.lerp_(p.data, 1 - m)
            q.data.mul_(m).add_(p.data, alpha=1 - m)

    def forward(self, x):
        with torch.no_grad():
            for p, q in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
                q.data = q.data * self.m + p.data * (1.0 - self.m)
        self.target.weight.data.copy_(self.online.weight.data)
        self.ema.load_state_dict(self.model.state_dict())
        return self.online(x)

class Agent:
    def sync(self):
        for t, s in zip(self.target_net.parameters(), self.net.parameters()):
            t.data.copy_(s.data)
        self.target_net.load_state_dict(self.net.state_dict())
""",
    "swapped and restored": """
class EMA:
    def store(self, parameters):
        self.collected = [p.clone() for p in parameters]

    def restore(self, parameters):
        for c, p in zip(self.collected, parameters):
            p.data.copy_(c.data)

    def swap(self, model, other):
        for p, q in zip(model.parameters(), other.parameters()):
            tmp = p.data
            p.data = q.data
            q.data = tmp
""",
    "once, in forward": """
class Lazy(nn.Module):
    def forward(self, x):
        if not self.initialized:
            self.decoder.weight.data.copy_(self.encoder.weight.data.t())
            self.initialized = True
        if self.steps % 100 == 0:
            self.slow_net.weight.data.copy_(self.net.weight.data)
            self.b.weight.data.copy_(self.a.weight.data)
        return self.decoder(self.encoder(x))
""",
    "detached on purpose": """
class VQ(nn.Module):
    def __init__(self, k, d):
        super().__init__()
        self.embedding = nn.Embedding(k, d)
        self.proj = nn.Linear(d, d)

    def forward(self, z):
        distances = z.pow(2).sum(1, keepdim=True) - 2 * torch.matmul(z, self.embedding.weight.data.t())
        index = torch.argmin(distances, dim=1)
        return self.embedding(index)

class Probe(nn.Module):
    def __init__(self, k, d):
        super().__init__()
        self.head = nn.Linear(d, k)
        self.weight = nn.Parameter(torch.randn(k, d))

    def forward(self, x):
        with torch.no_grad():
            logits = F.linear(x, self.head.weight.data)
        own = F.linear(x, self.weight.data)
        still = F.linear(x, self.head.weight.detach())
        return self.head(x) + still + own + logits
""",
    "functional use": """
class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)

    def forward(self, x):
        z = self.encoder(x)
        return F.linear(z, self.encoder.weight.t())
""",
    "plain attributes": """
class View:
    def __init__(self, other):
        self.weight = other.linear.weight.t()
        self.kernel = self.other.weight.T

class Cached(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.weight_t = self.linear.weight.t()

    def refresh(self):
        del self.head.weight
        self.head.weight = self.linear.weight.t()
""",
    "numpy, scipy and pandas": """
import numpy as np
import pandas as pd

frame = pd.DataFrame({"weight": [1, 2]})
frame.weight = frame.weight.T
matrix.data = other.data
array = np.array([0]) * 3
a.weight = [b.weight] * 3
names = ["x"] * 3
self_weight = frame.weight.values.T
""",
    "words in text": '''
HELP = """
self.decoder.weight = nn.Parameter(self.encoder.weight.t())
self.decoder.weight.data = self.encoder.weight.data.t()
nn.ModuleList([nn.Linear(3, 3)] * 3)
"""
# self.decoder.weight = nn.Parameter(self.encoder.weight.t())
print("self.decoder.weight = self.encoder.weight.t()")
''',
    "tied": """
import tied

class AE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(784, 64)
        self.decoder = nn.Linear(64, 784)
        with tied.tying(self) as m:
            m.decoder.weight = m.encoder.weight.t()

def declare(model):
    with tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        for a, b in zip(m.up, m.down):
            a.weight = b.weight.t()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
""",
    "another library's nn": """
from flax import linen as nn
from mylib import Parameter

class M(nn.Module):
    def setup(self):
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())
        self.decoder.weight = Parameter(self.encoder.weight.t())
        self.layers = [nn.Linear(3)] * 4
""",
    "which of two nobody knows": """
class Net(nn.Module):
    def __init__(self, flag):
        super().__init__()
        if flag:
            w = self.encoder.weight.t()
        else:
            w = torch.randn(3, 4)
        self.decoder.weight = nn.Parameter(w)
        for layer in self.layers:
            w = w @ layer.weight
        self.last.weight = nn.Parameter(w)
        self.masked.weight = nn.Parameter(self.encoder.weight[self.mask])

def choose(flag, d):
    w = torch.zeros(d)
    net = nn.Module()
    if flag:
        net.a = nn.Parameter(w)
    else:
        net.b = nn.Parameter(w)
    return net
""",
}
