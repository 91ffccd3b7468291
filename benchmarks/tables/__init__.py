"""The tables of docs/reference/benchmarks.md, in the order of the page."""

from benchmarks.tables import aliases, churn, load, overhead, recovery, rest
from benchmarks.tables.table import Table

TABLES: dict[str, Table] = {
    each.TABLE.name: each.TABLE for each in (load, overhead, rest, churn, recovery, aliases)
}
