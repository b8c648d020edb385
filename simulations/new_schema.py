"""`tacit-simulate new DATA`: a schema and a plan for a table of one's own, to be filled in.

Both hold the columns' names and kinds, and no value of any row: bounds and categories are public,
and whoever writes them down has to know them from elsewhere.
"""

import json
from pathlib import Path
from typing import Final

from client.data.formats.header import columns_of
from client.data.reader import sources
from client.data.source import FILE, options_of
from client.tasks.rows import TaskError
from privacy.files import write_atomic

HEAD: Final = """# The columns of {data}, to be filled in; what is empty is refused until it is.
# Bounds and values are public: write down what a value means, never what the file holds.
# A column that is not learnt from (a name, a number of a case) must go.

label = ""              # the column to predict; kind = "regression" where it is a number
# subject = ""          # the column that says whose row it is, where people have several
# site = ""             # the column that says who holds it, for split = "natural"
norm = 2.0              # every row's features have this length, and use the clip alike
random = 512            # public random features: a linear model with curved boundaries
"""
PLAN: Final = """# tacit-simulate {plan} --data {data}
task = "table"
schema = "{schema}"
purpose = ""            # one line that the data's owners read
sites = 5
rounds = 60
rate = 1.0              # each step draws a row with this probability
rows = "actual"
lr = "auto"             # by a rule from these numbers; a number where kind = "regression"
average = true
clip = 1.0              # the most that one row's gradient may weigh
epsilon = 2.0           # of the whole run, for one row
delta = 1e-5            # below one in the number of rows
"""
_KINDS: Final = {
    "number": 'type = "number"\n# min =\n# max =\n# missing = "indicator"',
    "boolean": 'type = "category"\nvalues = [false, true]',
    "date": 'type = "date"\n# min = 2000-01-31\n# max =',
    "text": 'type = "category"\nvalues = []',
}


def new_schema(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write NAME-schema.toml and NAME.toml for a table NAME into `folder`; their paths.

    TaskError where they are there already, or where the table has no header.
    """
    options = options_of(data)
    if options.query:
        raise TaskError(f"{data}: expected a file, got a query (its names are in its own text)")
    file = sources(data, options)[0]
    name = (
        file.name.split(".")[0] if data.name == FILE or data.is_dir() else data.name.split(".")[0]
    )
    schema, plan = folder / f"{name}-schema.toml", folder / f"{name}.toml"
    for path in (schema, plan):
        if path.exists():
            raise TaskError(f"{path}: exists already, expected a new name")
    try:
        columns, delimiter = columns_of(file, options)
    except TaskError as error:
        raise TaskError(f"{file}: {error}") from None
    parts = [HEAD.format(data=file.name)]
    if delimiter:
        parts[0] += f"delimiter = {quoted(delimiter)}\n"
    for column, kind in columns:
        if "*" in column:
            parts.append(f"# {quoted(column)}: a name with * stands for many columns; rename it\n")
            continue
        parts.append(f"[columns.{quoted(column)}]\n{_KINDS[kind]}\n")
    write_atomic(schema, "\n".join(parts).encode())
    text = PLAN.format(plan=plan.name, data=data, schema=schema.name)
    write_atomic(plan, text.encode())
    return schema, plan


def quoted(text: str) -> str:
    """A printable text as a TOML string."""
    return json.dumps(text, ensure_ascii=False)
