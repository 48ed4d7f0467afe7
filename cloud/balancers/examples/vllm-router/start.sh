# vllm-router in front of pool <<pool>>, without a worker: the daemon adds them. power_of_two does not start so.
# It answers the call that adds a worker once that is healthy, so the wait for it is short here.
vllm-router --host <<listen_host>> --port <<listen_port>> --policy round_robin --health-check-interval-secs 1 --health-check-timeout-secs 2 --health-failure-threshold <<fall>> --health-success-threshold 1 --worker-startup-timeout-secs 2 --worker-startup-check-interval 1
