"""The sandbox's state: database, records, books, files, the lifecycle of a job, rules, faults and clock."""
