"""Labelled examples for linear probes, made from the packaged corpora; the files are the interface of `recipes.probe`.

``OUT/probe/`` holds one tab-separated file with a header line per task, UTF-8, unquoted, in the order of the ids::

    phones.tsv     one row per aligned English prompt; `label` is empty, the labels lie in phones.alignment.tsv
    words.tsv      one row per spoken word (a segment of a prompt); `label` is the word
    speakers.tsv   one row per acted line of Czech dialogue; `label` is the character, `small` or `big`
    events.tsv     one row per sonic-pi sample; `label` is its class, the prefix of the file name
    phones.alignment.tsv   columns id, start, end, phone, word: every segment of every row of phones.tsv, in time order,
                   silence included (phone `SIL`, `+NSN+`, ...; word `<sil>`, ...); seconds with 10 ms resolution; phones
                   are the 39 of the CMU dictionary

Columns of a task, all present in every file:

    id           unique in the file; for words, `UTTERANCE#N` with N the word's place in the prompt
    utterance    id of the audio file in the manifests (bootstrap intervals resample utterances, not frames)
    path         audio file, relative to the folder of the TSV
    num_samples, sample_rate, domain    of the whole audio file, as in a manifest
    label        see above
    split        train, valid (choice of the layer and of the regularisation) or test
    fold         0 to 4 in events.tsv (five-fold cross-validation, classes spread evenly); empty elsewhere
    start, end   seconds of the labelled segment; 0 and the duration when it is the whole file
    text, speaker, language             as in a manifest, may be empty

Splits of phones, words and speakers depend on nothing but the normalised text: clips with the same text, and all words of
a prompt, fall into the same split. Clips of their test split are left out of the pre-training manifests.
"""
