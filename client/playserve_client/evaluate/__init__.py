"""The evaluator: plays assigned episodes against a policy server and says how good the policy is, with error bars.

``playserve rollout`` is its command line. From the inside out: `plan` assigns episodes and seeds before anything is
played; `worker` and `pool` run environments in processes; `driver` plays one phase of the plan, over one Rollout
stream (`stream`) or with local baselines (`players`); `journal` keeps each finished episode; `statistics`, `report`,
`table`, `video` and `merge` make results of them; `run` ties them together.
"""
