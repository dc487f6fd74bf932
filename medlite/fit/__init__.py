"""Will a model fit on this machine, and how fast will it be?"""
