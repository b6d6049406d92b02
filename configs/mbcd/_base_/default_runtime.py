"""What every run shares: hooks, logging, exact resume."""

default_scope = "mmaction"
custom_imports = dict(imports=["mmaction_mbcd"], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type="StepInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, ignore_last=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    batch_norm=dict(type="AverageBatchNormHook"),
    report=dict(type="RunReportHook"),
    finite=dict(type="FiniteGuardHook"),
    # The target is never asked which checkpoint to keep.
    checkpoint=dict(
        type="ResumableCheckpointHook",
        interval=1,
        max_keep_ckpts=2,
        minutes=10,  # within an epoch
        save_best="source/top1",
        rule="greater",
    ),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_processor = dict(type="LogProcessor", window_size=10, by_epoch=True)
visualizer = dict(
    type="ActionVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_level = "INFO"
load_from = None
resume = False

val_cfg = dict(type="WatchfulValLoop")
test_cfg = dict(type="WatchfulTestLoop")
val_evaluator = dict(type="DomainAccuracy")
test_evaluator = dict(type="DomainAccuracy")
