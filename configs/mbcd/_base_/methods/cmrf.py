"""CMRF: contrast, and distillation from between the averaged model's representations.

Fan et al., NeurIPS 2024. Unimodal weight 2.0, contrast 3.0 at tau 0.1, distillation
3.0, mixing 0.1 and audio at 1/2: upstream and its README; the published benchmark code
with its default flags is SimMMDG instead. The running mean starts at iteration 400
upstream for EPIC-Kitchens and at 100 for HAC; until then it copies the student and
nothing is distilled. The student is what is evaluated.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="CMRF",
    model=dict(
        probe=False,
        objectives=[
            dict(
                type="WeightedClassification",
                unimodal_weight=2.0,
                modality_weights=dict(audio=0.5),
            ),
            dict(
                type="RepresentationFlattening",
                contrast_weight=3.0,
                distill_weight=3.0,
                mixing=0.1,
                modality_weights=dict(audio=0.5),
                pairs=None,
                temperature=0.1,
                hidden_channels=2048,
                out_channels=128,
            ),
        ],
    ),
    custom_hooks=[
        dict(
            type="TeacherEMAHook",
            beta=None,
            ema_type="StochasticWeightAverage",
            begin_iter=400,
            evaluate="student",
        )
    ],
    # As upstream ran it, for the leaves below published/.
    published=dict(
        train_cfg=dict(max_epochs=15), optim_wrapper=dict(), param_scheduler=[]
    ),
)
