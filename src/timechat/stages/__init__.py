"""The verbs: each takes a recipe, a run or a model, puts what it needs in order, and leaves files.

A package for each part of the work, each above those that it needs; a verb's file bears its name:

    learning    `learn`                 comparing   `compare`
    jobs        fine-tuning jobs        annotating  `annotate`, `collect`
    serving     `chat`, `serve`         exporting   `export`
    training    `plan`, `train`, `resume`
    runs        `runs`: a run's record, inputs, checkpoints, versions
    evaluating  one model asked everything; two of them, a report
    preparing   `prepare`, `show`

and `doctor`, beside what all of them share: `watch`, `stop` and `environment`.
"""
