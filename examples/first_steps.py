"""autoexp from Python: a small training with a cooldown, its curves, and a page to pass on.

python examples/first_steps.py
"""

import autoexp

composed = autoexp.compose(
    "demo",
    values={
        "project.name": "steps",
        "backend.args.train_iters": 400,
        "cooldowns": [{"at": [200], "decay": {"iterations": 100}}],
    },
)
print("plan:", [job.name for job in autoexp.plan(composed).jobs])

session = autoexp.run(composed)
status = session.wait(timeout_s=600)
print(session.id, status.state)

columns = session.metrics(frame="columns")
for name, job in session.jobs.items():
    logged = columns["job"].count(name)
    print(f"{name}: {job.verdict} at iteration {job.iteration}, {logged} points logged")
print("page:", session.report(f"{session.id}.html"))
