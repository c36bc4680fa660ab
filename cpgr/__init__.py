"""cpgr: grounding of referring expressions from images and expressions alone, by cyclic pseudo labels.

`python -m cpgr.run` runs a recipe; `cpgr --help` lists the tools. DESIGN of the package in one line:
cli > run > ablation > execution > recipes > {generation, refinement, grounding, cycle} > {data, labels, metrics} > regions.
"""

__version__ = "0.1.0"
