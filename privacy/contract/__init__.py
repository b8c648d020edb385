"""What a run may do: the coordinator's plan, the site's policy, and the decision between them.

Pure values; only `plan_file` reads files.
"""
