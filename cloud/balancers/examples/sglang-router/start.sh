# sglang-router in front of pool <<pool>>, without a worker: the daemon adds them.
sglang-router launch --host <<listen_host>> --port <<listen_port>> --policy round_robin --health-check-interval-secs 1 --health-check-timeout-secs 2 --health-failure-threshold <<fall>> --health-success-threshold 1 --worker-startup-check-interval 1
