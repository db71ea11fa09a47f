"""The planner: what a run would take and cost under alternatives, from measured steps, dated prices, named assumptions.

calibration.py   what was measured: seconds of a batch by size and threads, a run's own figures; measure.py takes them
assumptions.py   figures of AWS that nobody could measure here (assumptions.toml), and of the local stack (local.toml)
job.py, plan.py  what is to be trained, and one way to do it
model.py         seconds, US dollars and their error band of a plan: pure; local.py: the same of the local stack
search.py        all alternatives, and those that no other beats in both; choice.py: which of them to take
verdict.py       when serverless loses, where the crossover lies, what a GPU would cost
picture.py       table and scatter; apply.py: the choice written back into the configuration file
"""
