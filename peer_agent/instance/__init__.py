"""What runs on a peer's EC2 instance: `python -m peer_agent.instance`, around the peer itself.

It waits for the run that `deployment/current.json` names, fetches the broker user's password, starts `python -m
peer_agent` as a child, brings the child's events to S3 and its figures to the log, and at the end sets its auto scaling
group to 0, which ends the instance. Every ending does that but two:

- SIGTERM before the run was over: whoever sent it (the group, a schedule, the system) has decided what becomes of the
  instance, and one that the group puts in its place should take part.
- Another instance holds the rank: the group's capacity is that one's.

So a run's failure never keeps an instance alive, whatever failed: secret, storage, broker, code, or the peer itself. A
peer that said why it failed is not started again. One that died without a word is, a few times; a rank that was claimed
more often than that (on however many instances) is given up. A rank that is given up leaves a report and a stop record,
so that the other peers end within seconds and nobody takes it up again.

Exit status: 0 when the run was over in order or there was none; 1 when this peer or the run failed; 75 when the group
could not be set to 0, so that starting again is worth a try.
"""
