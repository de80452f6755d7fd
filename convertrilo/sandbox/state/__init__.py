"""The sandbox's state: its database and records, the life of a job, rules, faults and clock."""
