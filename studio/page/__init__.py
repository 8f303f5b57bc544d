"""The page's tabs: each module lays out one tab, answers its events and wires both."""
