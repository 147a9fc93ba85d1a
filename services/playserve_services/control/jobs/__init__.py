"""Jobs: typed requests become ``playserve`` commands; workers run them, here or in a cluster; the runner watches."""
