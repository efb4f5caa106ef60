"""Notebook 06: knowledge distillation."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "unlabelled": "teachers",  # sentences for which there is no label
        "cache_path": "teachers",  # where a teacher's answers to sentences are kept
        "teacher_outputs": "teachers",  # computed once, read from that file afterwards
        "TeacherOutputs": "teachers",
        "soft_target_loss": ".training.losses",  # Hinton et al. 2015
        "logit_mse_loss": ".training.losses",
        "word_table": "students",  # the teacher's word embeddings
        "pca_table": "students",  # the same with fewer numbers a word
        "bilstm": "students",
        "keep_layers": "students",  # a copy with some of the teacher's layers
        "with_teacher_labels": "teachers",
        "DistilConfig": "student_training",  # the losses' weights, and how to train
        "DistilDataset": "student_training",
        "train": "student_training",
        "layer_map": "student_training",  # which layer learns from which
        "mixture_weights": "teachers",  # several teachers: how much to trust each
        "mix_teachers": "teachers",
        "train_mutually": "student_training",  # students that teach each other
        "sequence": "sequence",  # the same for language models
        "logits_and_states": "students",
        "attention_transfer_loss": ".training.losses",
    },
)
