"""``optpipe bench``: how fast an artifact answers, in process and over HTTP, with numbers one can trust.

    lengths, arrivals, prompts, workload → requests planned before anything is measured
    load → records, by engine_client (in process) or http_client (any OpenAI-compatible server)
    statistics, slo → the metrics; report, plot → JSON, table, picture
    startup → a fresh process up to its first token

TTFT = first token − arrival · TPOT = (last − first token) / (output tokens − 1)
ITL = gaps between chunks, pooled · E2E = last token − arrival
goodput = requests per second that meet every stated limit
"""
