"""Any folder of labelled photographs: a ResNet-18 learns them from nothing, then teaches a DeiT-Tiny through SHAKE.

Command    kdscale data pack photos/train shards --split train;  kdscale data pack photos/val shards --split val
           kdscale train own_data data.source=shards --out runs/mine
Cost       a teacher of 1.8 GMAC and a student of 1.3 GMAC an image, 100 epochs each: `kdscale check own_data data.source=shards` says
Published  none: it depends on the photographs
Ours       not run yet
"""

from kdscale.methods import Shake, Supervised
from kdscale.recipe import AdamW, Augment, Cosine, Data, FromPhase, Model, Phase, Recipe

recipe = Recipe(
    networks={"student": Model("deit_tiny_distilled_patch16_224", drop_path=0.1), "teacher": FromPhase("teacher")},
    data=Data("shards", batch=256, train=Augment.deit()),
    phases=(
        Phase(
            Supervised(),
            epochs=100,
            name="teacher",
            networks={"student": Model("resnet18")},
            optimizer=AdamW(1e-3, per=512),
            schedule=Cosine(warmup=5),
        ),
        Phase(Shake(), epochs=100, name="student", optimizer=AdamW(5e-4, per=512), schedule=Cosine(warmup=5)),
    ),
    name="own_data",
)
