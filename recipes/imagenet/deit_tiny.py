"""DeiT-Tiny with a distillation token against RegNetY-16GF on ImageNet-1k, in the DeiT protocol.

Command    accelerate launch -m kdscale train imagenet/deit_tiny:shake data.source=DATA machine.compile=true precision=bf16 --out runs/shake
           DATA: a folder packed by `kdscale data pack`, or indexed by `kdscale data index` (splits train and val)
Cost       300 epochs are 384 million images; 39.5 GFLOP an image, four fifths of it the teacher: about 21 hours at 5 000 images/s
Published  deit: 74.5 top-1 with the token, 72.2 without a teacher (Touvron et al., ICML 2021, tables 3 and 5; teacher 82.9)
           shake: none on this student (SHAKE has no number for DeiT-Tiny in its tables)
Ours       deit: not run yet
           shake: not run yet
"""

from kdscale.methods import Deit, Shake
from kdscale.recipe import AdamW, Augment, Cosine, Data, Ema, Machine, Model, Phase, Recipe

base = Recipe(
    networks={
        "student": Model("deit_tiny_distilled_patch16_224", drop_path=0.1),
        "teacher": Model("timm/regnety_160.deit_in1k"),
    },
    data=Data("imagenet", batch=1024, train=Augment.deit(), repeats=3),
    phases=(Phase(Deit(hard=True), epochs=300, optimizer=AdamW(5e-4, per=512, decay=0.05), schedule=Cosine(warmup=5)),),
    ema=Ema(0.99996),
    machine=Machine(channels_last=True),
    name="deit_tiny",
)
deit = base
shake = base.with_method(Shake(temperature=4.0))
