"""Top-1 on CIFAR-100 as the papers print it: a table each, a row for a recipe, a column for a pair; '-' where nothing is printed."""

POSTER = """
pair           wrn_40_2:wrn_16_2  resnet56:resnet20 resnet110:resnet20 resnet32x4:resnet8x4         vgg13:vgg8  vgg13:MobileNetV2      ResNet50:vgg8 wrn_40_2:ShuffleV1
teacher                    75.61              72.34              74.31              79.42              74.64              74.64              79.34              75.61
alone                      73.26              69.06              69.06              72.50              70.36              64.60              70.36              70.50
dml                        75.33              71.35              71.52              74.30              73.64              68.52              74.22              75.58
dml_dagger                 74.83              69.95              70.04              73.15              72.86              66.30              73.34              74.52
kd                         74.92              70.66              70.67              73.33              72.98              67.37              73.81              74.83
kd_dagger                  75.78              71.52              71.76              74.91              73.85              68.81              74.40              76.42
shake                      76.62              71.98              72.02              77.35              74.87              70.03              75.06              77.25
kd_fitnets                 75.12              71.12              71.24              74.66              73.49              67.73              73.91              77.42
shake_fitnets              76.91              72.00              72.15              78.06              74.78              70.38              75.27              78.04
crd_kd                     75.89              70.90              71.60              75.46              74.08              69.94              74.22              76.27
shake_crd                  77.17              72.29              71.87              76.57              74.65              70.04              75.22              77.61
kd_mixup                   75.28              71.66              71.33              75.20              74.07              67.31              73.91              76.49
shake_mixup                76.91              71.82              72.07              77.39              75.53              70.25              75.66              78.17
kd_cutmix                  75.66              70.90              70.69              75.39              74.78              66.39              75.04              77.44
shake_cutmix               76.29              70.92              70.90              78.28              75.11              69.44              75.98              78.27
kd_aver                    75.22              71.08              71.24              74.99              74.90              68.91              73.26              76.30
shake_aver                 76.82              72.28              72.22              78.59              75.60              70.35              75.51              77.52
kd_aekd                    75.68              71.25              71.36              74.75              74.75              68.39              73.11              76.34
shake_aekd                 76.88              72.32              72.35              78.90              76.26              70.42              75.67              77.60
"""
SUPPLEMENT_4 = """
pair           wrn_40_2:wrn_16_2  wrn_40_2:wrn_40_1 resnet110:resnet20 resnet110:resnet32 resnet32x4:resnet8x4         vgg13:vgg8 ResNet50:MobileNetV2 resnet32x4:ShuffleV1 resnet32x4:ShuffleV2
teacher                    75.61              75.61              74.31              74.31              79.42              74.64              79.34              79.42              79.42
alone                      73.26              71.98              69.06              71.14              72.50              70.36              64.60              70.50              71.82
fitnets                    73.58              72.24              68.99              71.06              73.50              71.02              63.16              73.59              73.54
at                         74.08              72.77              70.22              72.31              73.44              71.43              58.58              71.73              72.73
crd                        75.48              74.14              71.46              73.48              75.51              73.94              69.11              75.11              75.65
crd_kd                     75.64              74.38              71.56              73.75              75.46              74.29              69.54              75.12              76.05
kd                         74.92              73.54              70.67              73.08              73.33              72.98              67.35              74.07              74.45
kd_dagger                  75.58              74.24              71.76              73.35              74.91              73.65              68.81              75.21              75.95
dml                        75.33              73.98              71.52              73.28              74.30              73.64              68.52              75.58              76.44
dml_dagger                 74.83              73.26              70.55              72.98              73.15              72.86              67.22              74.02              74.32
shake                      76.82              75.62              72.02              74.49              77.95              74.99              70.18              77.46              78.51
shake_fitnets              76.91              75.73              72.15              74.62              78.06              75.15              70.23              77.62              78.69
shake_crd                  77.17              75.89              72.32              74.88              78.13              75.26              70.42              77.86              78.82
"""
SFTN_1 = """
pair          wrn_40_2:wrn_16_2  wrn_40_2:wrn_40_1 resnet32x4:resnet8x4 resnet32x4:resnet8x2
teacher                   76.30              76.30              79.25              79.25
sftn_teacher              78.20              77.62              79.41              77.89
alone                     73.41              72.16              72.38              68.19
kd                        75.46              73.73              73.39              67.43
sftn_kd                   76.25              75.09              76.09              69.17
kd_fitnets                75.72              74.14              75.34              69.80
sftn_fitnets              76.73              75.54              76.89              71.07
at_kd                     75.85              74.56              74.98              68.79
sftn_at                   76.82              75.86              76.91              70.90
crd                       75.91              74.93              75.54              70.34
sftn_crd                  77.23              76.09              76.95              71.34
"""
SFTN_2 = """
pair         resnet32x4:ShuffleV1 resnet32x4:ShuffleV2      ResNet50:vgg8 wrn_40_2:ShuffleV2
teacher                   79.25              79.25              78.70              76.30
sftn_teacher              80.03              79.58              82.52              78.21
alone                     71.95              73.21              71.12              73.21
kd                        74.26              75.25              73.82              76.68
sftn_kd                   77.93              78.07              74.92              78.06
kd_fitnets                75.95              77.00              73.22              77.31
sftn_fitnets              78.75              79.68              74.80              79.21
at_kd                     76.12              76.57              73.56              77.41
sftn_at                   78.63              78.79              74.05              78.29
crd                       75.60              76.35              74.52              77.52
sftn_crd                  78.20              78.43              75.41              78.81
"""
SFTN_4 = """
pair       wrn_40_2:wrn_16_2  wrn_40_2:wrn_40_1 resnet32x4:resnet8x4 resnet32x4:ShuffleV1 resnet32x4:ShuffleV2      ResNet50:vgg8
dml                    75.30              74.08              74.34              73.37              73.80              73.01
kdcl                   75.45              74.65              75.21              73.98              74.30              73.48
rco                    75.36              74.29              74.06              76.62              77.40              74.30
rco_eei_4              75.69              74.87              73.73              76.97              76.89              74.24
sftn_4                 76.96              76.31              76.67              79.11              78.95              75.52
"""
TABLES = {
    "SHAKE, poster": POSTER,
    "SHAKE, supplement table 4": SUPPLEMENT_4,
    "SFTN, table 1": SFTN_1,
    "SFTN, table 2": SFTN_2,
    "SFTN, table 4": SFTN_4,
}


def published(pair: str) -> dict[str, dict[str, float]]:
    """recipe -> table -> top-1, for one pair ("teacher:student")."""
    found: dict[str, dict[str, float]] = {}
    for title, text in TABLES.items():
        head, *rows = (line.split() for line in text.strip().splitlines())
        if pair in head:
            column = head.index(pair)
            for name, *numbers in rows:
                if numbers[column - 1] != "-":
                    found.setdefault(name, {})[title] = float(numbers[column - 1])
    return found
