"""wrn_40_2 -> wrn_16_2 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/wrn_40_2_wrn_16_2:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/wrn_40_2_wrn_16_2 --grid seed=0,1,2 data.source=DATA --out runs/wrn_40_2_wrn_16_2   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 75.61 (SHAKE, poster); 75.61 (SHAKE, supplement table 4); 76.30 (SFTN, table 1)
           alone 73.26 (SHAKE, poster); 73.26 (SHAKE, supplement table 4); 73.41 (SFTN, table 1)
           kd 74.92 (SHAKE, poster); 74.92 (SHAKE, supplement table 4); 75.46 (SFTN, table 1)
           shake 76.62 (SHAKE, poster); 76.82 (SHAKE, supplement table 4)
Ours       `kdscale results --of cifar100/wrn_40_2_wrn_16_2`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("wrn_40_2", "wrn_16_2", published("wrn_40_2:wrn_16_2"))
