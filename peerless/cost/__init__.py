"""What runs and deployments cost: the price book, the price of a deployment by the hour, and a run's bill.

book.py has the prices with their dates and sources, deployment.py what stands and costs by the hour, use.py what a run
used by the piece, and bill.py what both come to.
"""

from __future__ import annotations

from peerless.cost.bill import Bill, Tariff
from peerless.cost.book import HOME_REGION, Book, Price, book
from peerless.cost.deployment import HOURS_A_MONTH, alarm_metrics, hourly, run_prices, unpriced
from peerless.cost.use import Use, hours_of, measure

__all__ = [
    "HOME_REGION",
    "HOURS_A_MONTH",
    "Bill",
    "Book",
    "Price",
    "Tariff",
    "Use",
    "alarm_metrics",
    "book",
    "hourly",
    "hours_of",
    "measure",
    "run_prices",
    "unpriced",
]
