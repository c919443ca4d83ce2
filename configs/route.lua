-- Orthanc: send each new image series to radnode. Series that a radnode made stay here, so nothing goes in circles
-- (radnode refuses its own results as well).
local IMAGES = { CT = true, MR = true }

function OnStableSeries(seriesId, tags, metadata)
  if IMAGES[tags['Modality']] and (tags['Manufacturer'] or '') ~= 'radnode' then
    RestApiPost('/modalities/radnode/store', DumpJson({ Resources = { seriesId }, Synchronous = false }, true))
  end
end
