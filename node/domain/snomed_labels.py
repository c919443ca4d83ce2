"""Codes of the structures that public models outline, by the words of their names: proposals for a card, to be confirmed by a person.

Where the codes are from (column `source`):

P  DICOM PS3.16, a context group of segmentation property types (CID 7151 to 7192); the code meaning is the standard's
D  DICOM PS3.16, elsewhere in its dictionary of SNOMED CT, DICOM, NCIt and FMA concepts; the code meaning is the standard's
T  SNOMED CT as TotalSegmentator 2.18 maps its own labels (resources/totalsegmentator_snomed_mapping.csv, Apache-2.0): not in PS3.16

`tests/unit/domain/test_label_codes.py` compares P and D with pydicom's copy of the standard. Names of one structure are separated by
commas; the order of their words, case and plural do not matter. Sides (left, right) stand in a name only where the structure has a
code of its own for that side.
"""

from dataclasses import dataclass
from typing import Final

from node.codes import Code


@dataclass(frozen=True, slots=True)
class KnownStructure:
    """A row of the table."""

    names: tuple[str, ...]
    code: Code
    source: str
    rgb: tuple[int, int, int] | None = None


ANATOMICAL_STRUCTURE: Final = Code("91723000", "SCT", "Anatomical Structure")
TISSUE: Final = Code("85756007", "SCT", "Tissue")
MORPHOLOGICALLY_ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LEFT: Final = Code("7771000", "SCT", "Left")
RIGHT: Final = Code("24028007", "SCT", "Right")

_STRUCTURES: Final = """
spleen                                                          | SCT 78961009  | Spleen                      | P | 157 108 162
kidney, renal parenchyma, kidney parenchyma                     | SCT 64033007  | Kidney                      | P | 185 102 83
gallbladder, gall bladder, gall                                 | SCT 28231008  | Gallbladder                 | P | 139 150 98
liver                                                           | SCT 10200004  | Liver                       | P | 221 130 101
stomach, sto                                                    | SCT 69695003  | Stomach                     | P | 216 132 105
aorta                                                           | SCT 15825003  | Aorta                       | P | 224 97 76
aortic arch                                                     | SCT 57034009  | Aortic arch                 | P |
ascending aorta                                                 | SCT 54247002  | Ascending aorta             | P |
descending aorta                                                | SCT 32672002  | Descending aorta            | P |
thoracic aorta                                                  | SCT 113262008 | Thoracic aorta              | P |
abdominal aorta                                                 | SCT 7832008   | Abdominal aorta             | P |
inferior vena cava, ivc, postcava                               | SCT 64131007  | Inferior vena cava          | P | 0 151 206
superior vena cava, svc                                         | SCT 48345005  | Superior vena cava          | P | 40 130 200
portal vein and splenic vein, portal and splenic veins          | SCT 110765007 | Portal vein and splenic vein | T | 0 110 180
portal vein                                                     | SCT 32764006  | Portal vein                 | P | 0 120 190
hepatic vein                                                    | SCT 8993003   | Hepatic vein                | P |
hepatic artery                                                  | SCT 76015000  | Hepatic artery              | P |
renal artery                                                    | SCT 2841007   | Renal artery                | P |
renal vein                                                      | SCT 56400007  | Renal vein                  | P |
pancreas                                                        | SCT 15776009  | Pancreas                    | P | 249 180 111
adrenal gland, adrenal, suprarenal gland                        | SCT 23451007  | Adrenal gland               | P | 249 186 150
duodenum                                                        | SCT 38848004  | Duodenum                    | P | 255 230 150
small bowel, small intestine                                    | SCT 30315005  | Small intestine             | P | 205 167 142
colon, large bowel                                              | SCT 71854001  | Colon                       | P | 204 168 143
rectum                                                          | SCT 34402009  | Rectum                      | P |
esophagus, oesophagus, eso                                      | SCT 32849002  | Esophagus                   | P | 211 171 143
urinary bladder, bladder                                        | SCT 89837001  | Bladder                     | P | 222 154 132
ureter                                                          | SCT 87953007  | Ureter                      | P |
renal pelvis                                                    | SCT 25990002  | Renal pelvis                | P |
prostate, prostate gland                                        | SCT 41216001  | Prostate                    | P | 230 158 140
prostate peripheral zone, peripheral zone                       | SCT 279706003 | Peripheral zone of the prostate | D | 120 190 200
prostate transition zone, transition zone, transitional zone    | SCT 399384005 | Transition zone of the prostate | D | 230 158 140
seminal vesicle                                                 | SCT 64739004  | Seminal Vesicle             | P |
uterus                                                          | SCT 35039007  | Uterus                      | P |
breast                                                          | SCT 76752008  | Breast                      | P |
thyroid, thyroid gland                                          | SCT 69748006  | Thyroid                     | P | 62 162 114
trachea                                                         | SCT 44567001  | Trachea                     | P | 182 228 255
trachea and bronchus, lung trachea bronchia, airway             | SCT 110726009 | Trachea and bronchus        | P | 182 228 255
bronchus                                                        | SCT 955009    | Bronchus                    | P |
lung                                                            | SCT 39607008  | Lung                        | P | 197 165 145
lung upper lobe                                                 | SCT 45653009  | Upper lobe of lung          | P | 172 138 115
lung middle lobe right                                          | SCT 72481006  | Middle lobe of right lung   | P | 202 164 140
lung lower lobe                                                 | SCT 90572001  | Lower lobe of lung          | P | 224 186 162
pleura                                                          | SCT 3120008   | Pleura                      | P |
heart                                                           | SCT 80891009  | Heart                       | P | 206 110 84
myocardium, heart myocardium                                    | SCT 74281007  | Myocardium                  | T | 192 104 88
left ventricle myocardium, lv myocardium                        | SCT 49848007  | Left Ventricle Myocardium   | D | 192 104 88
left atrium, heart atrium left                                  | SCT 82471001  | Left atrium                 | P | 203 81 97
right atrium, heart atrium right                                | SCT 73829009  | Right atrium                | P | 93 132 197
left ventricle, heart ventricle left, lv pool, lv, lv cavity    | SCT 87878005  | Left ventricle              | P | 152 55 13
right ventricle, heart ventricle right, rv pool, rv, rv cavity  | SCT 53085002  | Right ventricle             | P | 181 85 57
left atrial appendage, atrial appendage left, atrial appendage  | SCT 68786006  | Auricular appendage         | T |
pericardium                                                     | SCT 76848001  | Pericardium                 | P |
coronary artery                                                 | SCT 41801008  | Coronary artery             | P |
pulmonary artery                                                | SCT 81040000  | Pulmonary artery            | P | 0 122 171
pulmonary vein                                                  | SCT 122972007 | Pulmonary vein              | P | 186 77 64
brachiocephalic trunk, brachiocephalic artery                   | SCT 12691009  | Innominate artery           | P |
brachiocephalic vein                                            | SCT 8887007   | Innominate vein             | P |
subclavian artery                                               | SCT 36765005  | Subclavian artery           | P |
common carotid artery                                           | SCT 32062004  | Common carotid artery       | P |
iliac artery, common iliac artery                               | SCT 73634005  | Common iliac artery         | P | 216 101 79
iliac vein, iliac vena, common iliac vein                       | SCT 46027005  | Common iliac vein           | P | 0 161 196
mitral valve                                                    | SCT 91134007  | Mitral Valve                | P |
aortic valve                                                    | SCT 34202007  | Aortic Valve                | D |
tricuspid valve                                                 | SCT 46030003  | Tricuspid valve             | P |
brain                                                           | SCT 12738006  | Brain                       | P | 250 250 225
spinal cord                                                     | SCT 2748008   | Spinal cord                 | P | 244 214 49
brain stem, brainstem                                           | SCT 119238007 | Brain Stem                  | P |
third ventricle, 3rd ventricle                                  | SCT 49841001  | Third ventricle             | P |
fourth ventricle, 4th ventricle                                 | SCT 35918002  | Fourth Ventricle            | P |
lateral ventricle                                               | SCT 66720007  | Lateral Ventricle           | P |
inf lat vent, inferior lateral ventricle                        | SCT 53118009  | Inferior Horn of Lateral Ventricle | P |
accumbens area, accumbens                                       | SCT 427667007 | Nucleus Accumbens           | P |
amygdala                                                        | SCT 4958002   | Amygdala                    | P |
caudate, caudate nucleus                                        | SCT 11000004  | Caudate Nucleus             | P |
hippocampus                                                     | SCT 5366008   | Hippocampus                 | P |
pallidum, globus pallidus                                       | SCT 14738005  | Globus Pallidus             | P |
putamen                                                         | SCT 89278009  | Putamen                     | P |
thalamus, thalamus proper                                       | SCT 42695009  | Thalamus                    | P |
ventral dc, ventral diencephalon                                | DCM 110700    | Ventral Diencephalon        | P |
cerebral white matter                                           | SCT 68523003  | Cerebral White Matter       | P |
cerebral cortex                                                 | SCT 40146001  | Cerebral cortex             | P |
cerebellum                                                      | SCT 113305005 | Cerebellum                  | P |
cerebellum exterior, cerebellum cortex, cerebellar cortex       | SCT 25991003  | Cerebellar Cortex           | P |
cerebellum white matter, cerebellar white matter                | SCT 33060004  | Cerebellar White Matter     | P |
white matter, wm                                                | SCT 389080008 | White Matter                | P |
gray matter, grey matter, gm                                    | SCT 389081007 | Gray Matter                 | P |
cerebrospinal fluid, csf                                        | SCT 65216001  | Cerebrospinal Fluid         | P |
skull                                                           | SCT 89546000  | Skull                       | P | 241 214 145
mandible                                                        | SCT 91609006  | Mandible                    | P |
face                                                            | SCT 89545001  | Face                        | P |
vertebra                                                        | SCT 51282000  | Vertebra                    | P |
spine                                                           | SCT 421060004 | Spine                       | P |
rib                                                             | SCT 113197003 | Rib                         | P | 253 232 158
sternum                                                         | SCT 56873002  | Sternum                     | P | 244 217 154
costal cartilage                                                | SCT 50016007  | Costal Cartilage            | P |
sacrum                                                          | SCT 54735007  | Sacrum                      | P | 212 188 102
hip                                                             | SCT 29836001  | Hip                         | P | 212 188 122
femur                                                           | SCT 71341001  | Femur                       | P | 234 216 161
humerus                                                         | SCT 85050009  | Humerus                     | P | 222 198 101
scapula                                                         | SCT 79601000  | Scapula                     | P | 212 188 102
clavicle, clavicula                                             | SCT 51299004  | Clavicle                    | P | 205 179 108
patella                                                         | SCT 64234005  | Patella                     | P |
gluteus maximus                                                 | SCT 181674001 | Gluteus maximus muscle      | T | 192 104 88
gluteus medius                                                  | SCT 78333006  | Gluteus medius muscle       | T | 200 112 96
gluteus minimus                                                 | SCT 75297007  | Gluteus minimus muscle      | T | 208 120 104
autochthon, autochthonous back muscle                           | SCT 244849004 | Deep muscle of back         | T | 171 85 68
iliopsoas                                                       | SCT 68455001  | Iliopsoas muscle            | T | 188 95 76
"""

_TISSUES: Final = """
artery                                                          | SCT 51114001  | Artery                      | P | 216 101 79
vein                                                            | SCT 29092000  | Vein                        | P | 0 151 206
vessel, blood vessel                                            | SCT 59820001  | Blood Vessel                | P |
bone                                                            | SCT 3138006   | Bone                        | P | 241 214 145
fat, adipose tissue                                             | SCT 55603005  | Fat                         | P | 230 220 70
muscle                                                          | SCT 91727004  | Muscle                      | P | 192 104 88
skin                                                            | SCT 39937001  | Skin                        | P |
cartilage                                                       | SCT 309312004 | Cartilage                   | P |
lymph node                                                      | SCT 59441001  | Lymph Node                  | P | 68 172 100
"""

_ABNORMAL: Final = """
neoplasm, tumor, tumour, cancer, cancer primaries, whole tumor, tumor core | SCT 108369006 | Neoplasm          | P | 144 238 144
metastasis, metastase                                           | SCT 14799000  | Neoplasm, Secondary         | P | 200 210 60
lesion                                                          | SCT 52988006  | Lesion                      | P | 255 160 60
mass                                                            | SCT 4147007   | Mass                        | P | 255 140 80
nodule                                                          | SCT 27925004  | Nodule                      | P | 255 200 60
cyst                                                            | SCT 367643001 | Cyst                        | P | 205 205 100
edema, oedema, peritumoral edema                                | SCT 79654002  | Edema                       | P | 140 224 228
necrosis, necrotic core                                         | SCT 6574001   | Necrosis                    | P | 216 191 216
enhancing tumor, enhancing lesion, gd enhancing tumor           | NCIt C113842  | Enhancing Lesion            | P | 230 90 90
non enhancing tumor, non enhancing lesion, non enhancing tumor core, necrotic and non enhancing tumor core | NCIt C81175 | Non-Enhancing Lesion | P | 90 140 230
hemorrhage, haemorrhage, bleeding                               | SCT 50960005  | Hemorrhage                  | P | 188 65 28
abscess                                                         | SCT 44132006  | Abscess                     | P |
thrombus                                                        | SCT 396339007 | Thrombus                    | P |
embolus                                                         | SCT 55584005  | Embolus                     | P |
pleural effusion                                                | SCT 60046008  | Pleural effusion            | D |
pericardial effusion                                            | SCT 373945007 | Pericardial effusion        | D |
"""

_VERTEBRAE: Final = """
C1 14806007, C2 39976000, C3 113205007, C4 5329002, C5 36978003, C6 36054005, C7 87391001,
T1 64864005, T2 53733008, T3 1626008, T4 73071006, T5 56401006, T6 45296009, T7 62487009, T8 11068009, T9 82687006,
T10 7610001, T11 12989004, T12 23215003, L1 66794005, L2 14293000, L3 36470004, L4 11994002, L5 49668003
"""
"""P: CID 7192 has each by its name, `C1 vertebra`."""

_RIBS: Final = """
First 48535007, Second 78247007, Third 25888004, Fourth 25523003, Fifth 15339008, Sixth 59558009, Seventh 24915002, Eighth 5953002,
Ninth 22565002, Tenth 77644006, Eleventh 58830002, Twelfth 43993008
"""
"""T; the AAPM TG-263 mapping of Rib01 to Rib12 has the same codes (`Bone structure of first rib`)."""

BREAST_DENSITY: Final = {
    "a": Code("129716005", "SCT", "Almost entirely fat"),
    "b": Code("129717001", "SCT", "Scattered fibroglandular densities"),
    "c": Code("129718006", "SCT", "Heterogeneously dense"),
    "d": Code("129719003", "SCT", "Extremely dense"),
}
"""CID 6000 and 6001, Overall Breast Composition (BI-RADS a to d)."""

BREAST_COMPOSITION: Final = Code("129715009", "SCT", "Breast composition")
"""D: the question that CID 6000 answers."""


def _rows(table: str) -> tuple[KnownStructure, ...]:
    rows = []
    for line in table.strip().splitlines():
        names, coded, meaning, source, colour = (part.strip() for part in line.split("|"))
        scheme, value = coded.split()
        red, green, blue = (int(part) for part in colour.split()) if colour else (0, 0, 0)
        known = tuple(name.strip() for name in names.split(","))
        rows.append(KnownStructure(known, Code(value, scheme, meaning), source, (red, green, blue) if colour else None))
    return tuple(rows)


def _vertebrae() -> tuple[KnownStructure, ...]:
    pairs = [one.split() for one in _VERTEBRAE.replace("\n", " ").split(",")]
    levels = [
        KnownStructure((f"vertebra {level}", level), Code(code, "SCT", f"{level} vertebra"), "P", (255, 255 - 4 * index, 207 - 6 * index))
        for index, (level, code) in enumerate(pairs)
    ]
    return (*levels, KnownStructure(("vertebra S1",), Code("65985001", "SCT", "S1 vertebra"), "T"))


def _ribs() -> tuple[KnownStructure, ...]:
    pairs = [one.split() for one in _RIBS.replace("\n", " ").split(",")]
    return tuple(
        KnownStructure((f"rib {index}", f"{word} rib"), Code(code, "SCT", f"{word} rib"), "T", (253 - 4 * index, 232 - 5 * index, 158))
        for index, (word, code) in enumerate(pairs, 1)
    )


ANATOMY: Final = (*_rows(_STRUCTURES), *_vertebrae(), *_ribs())
TISSUES: Final = _rows(_TISSUES)
ABNORMALITIES: Final = _rows(_ABNORMAL)
