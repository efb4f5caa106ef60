"""Notebook 07: pruning."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        # masks: which weights become zero, and stay it during training
        "prunable_weights": "masks",
        "l1_masks": "criteria",
        "mask_": "masks",
        "sparsity": "masks",
        "random_masks": "criteria",
        "global_l1_masks": "criteria",
        "row_masks": "criteria",
        "threshold_masks": "criteria",
        "two_four_masks": "criteria",
        "cubic_sparsity": "criteria",
        "prune_gradually_": "criteria",
        # lottery tickets
        "find_tickets": "lottery",
        "rewound": "lottery",
        "redrawn": "lottery",
        "shuffled": "lottery",
        # what zeros are worth to a runtime
        "make_permanent_": "masks",
        "why_no_two_four": "semi_structured",
        "compress_two_four": "semi_structured",
        # MobileNetV2's channels, really removed
        "largest_norm_channels": "channels",
        "mask_channels": "mobilenet",
        "remove_channels": "mobilenet",
        "least_squares": "reconstruction",
        "channel_importance": "channels",
        "hidden_channels": "mobilenet",
        "reconstruct_channels_": "channels",
        "channel_costs": "channels",
        "BLOCK_COST": "channels",
        "flower_baselines": "flower_baselines",
        # BERT's heads and neurons, really removed
        "gate_importance": "bert_importance",
        "keep_most_important": "bert_importance",
        "keep_irreplaceable_neurons": "bert_importance",
        "encoder_layers": "bert",
        "mask_heads_and_neurons": "bert",
        "remove_heads_and_neurons": "bert",
        "reconstruct_encoder_": "bert_importance",
        # a pruned network's file
        "save": "checkpoint",
        "load": "checkpoint",
    },
)
