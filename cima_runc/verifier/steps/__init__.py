"""The checks of evidence, in the design's order. Each step is a type that only its function makes,
and takes the one before: leaving a step out does not type-check.

===================  ===========================================================================
:mod:`.parsed`       bytes -> ``Parsed``: the text has the form of evidence
:mod:`.quoted`       -> ``Signed``: the enrolled key of a TPM signed a quote;
                     -> ``Quoted``: of the PCRs and for the request that were asked for
:mod:`.bound`        -> ``Bound``: the leaf is in the binding PCR, with the host's status
:mod:`.opened`       -> ``Opened``: the owner's part, which answers this very request;
                     -> ``Recalled``: nothing has gone back behind what is remembered
:mod:`.replayed`     -> ``Replayed``: the records of every run are what was bound, and chain up;
                     -> ``Continued``: what is remembered lies on that chain
:mod:`.explained`    -> ``Explained``: the host's log and the firmware's add up to their PCRs
===================  ===========================================================================

What is wrong is raised as an error of :mod:`cima_runc.verifier.errors`. Source: design, section 7.
"""
